"""Engines of one GPU each, built of values that may have crossed to another machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qcompiler.engines.apart import BuildingApart, Needed
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import model as models
from qcompiler.target import parse_target
from tests.kit.memory import crossing
from tests.kit.rewrite import model


def test_engines_are_those_that_are_built_of_the_files(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    onnx.save(model(("MatMul", "x w", "y"), inputs={"x": (8, 64)}, weights={"w": weight}), tmp_path / "float.onnx")
    written = models.save(models.load(tmp_path / "float.onnx"), tmp_path / "m.onnx", shard=4096)
    assert len(written) > 1  # weights lie in files of their own
    target = parse_target("tensorrt-rtx:sm86,sm120")
    needed = Needed.of(target, written, ())
    for sm, made in zip(target.sms, crossing("engine", BuildingApart, (needed,), target.sms), strict=True):
        alone = TensorRTRTX(sms=(sm,)).build(written[0], tmp_path / f"{sm}.engine")
        assert len(made.content) == alone.bytes
        assert made.seconds > 0


def test_another_library_is_another_question(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    needed = Needed.of(parse_target("tensorrt-rtx:sm86,sm120"), [tmp_path / "m.onnx"], ())
    assert len(needed.versions) == 2
    assert any(needed.versions)
