"""The stage that lets the back-end build: profiles, and what it tells."""

from __future__ import annotations

from pathlib import Path

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.build_engine import BuildOptions, build_engine, profiles_of
from qcompiler.ir import model as models
from qcompiler.recipe.tables import GenerationTable
from qcompiler.statistics.observe import Observations
from qcompiler.target import parse_target
from tests.kit.cases import prepared
from tests.kit.subjects import before

TARGET = parse_target("tensorrt-rtx")


def test_the_profile_is_what_the_user_says_else_what_the_data_showed(tmp_path: Path) -> None:
    standing = before("smooth_quant", prepared(tmp_path, "conv"))
    model, seen, inputs = standing.subject.model, standing.subject.seen, standing.subject.inputs
    shapes = {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}
    run = Compilation()
    (given,) = profiles_of(run, model, seen, inputs, BuildOptions(TARGET, shapes, GenerationTable(), False))
    (shown,) = profiles_of(run, model, seen, inputs, BuildOptions(TARGET, None, GenerationTable(), False))
    none = profiles_of(run, model, Observations(), inputs, BuildOptions(TARGET, None, GenerationTable(), False))
    assert given.shapes == shapes
    assert shown.shapes["x"][0] == (1, 3, 16, 16)
    assert none == []


def test_the_record_has_the_engine_with_its_hash_and_profiles(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case)
    assert standing.lowered is not None
    (file,) = models.save(standing.lowered.model, tmp_path / "m.qdq.onnx")
    subject, options = standing.subject, standing.asked.build
    run = Compilation()
    built = run(
        build_engine, file, tmp_path / "m.engine", standing.lowered.model, subject.seen, subject.inputs, options
    )
    assert built.path.is_file()
    record = run.records["engine"]
    assert record["file"] == "m.engine"
    assert len(record["sha256"]) == 64
    assert record["profiles"]
    assert list(run.timings) == ["build_engine"]
