"""The stage that writes the lowered model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.stages.write import ArtefactNames, write
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_the_file_is_a_model_and_its_hash_is_recorded(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case)
    assert standing.lowered is not None
    folder = tmp_path / "shop"
    folder.mkdir()
    names = ArtefactNames.of(Paths.of(case.out / "m.qdq.onnx", build=False), folder)
    path = standing.run(write, standing.lowered.model, None, names)
    onnx.checker.check_model(path)
    assert path == folder / "m.qdq.onnx"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert standing.run.records["files"]["qdq"].sha256 == digest
    assert standing.run.records["cache"] is None  # no decoder
