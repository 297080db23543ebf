"""The stage that lets the back-end build, and what it tells."""

from __future__ import annotations

from pathlib import Path

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.build_engine import build_engine
from qcompiler.ir import model as models
from qcompiler.target import parse_target
from tests.kit.cases import prepared
from tests.kit.subjects import before

TARGET = parse_target("tensorrt-rtx")


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
