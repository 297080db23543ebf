"""The stage that writes the lowered model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.compile import quantize
from qcompiler.compiler.stages.write import ArtefactNames, write
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_the_file_is_a_model_and_its_hash_is_recorded(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("verify", case)
    assert standing.lowered is not None
    folder = tmp_path / "shop"
    folder.mkdir()
    names = ArtefactNames.of(Paths.of(case.out / "m.qdq.onnx", build=False), folder, None)
    path = standing.run(write, standing.lowered.model, None, names)
    onnx.checker.check_model(path)
    assert path == folder / "m.qdq.onnx"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert standing.run.records["files"]["qdq"].sha256 == digest
    assert standing.run.records["cache"] is None  # no decoder


def test_every_file_of_weights_has_its_hash(tmp_path: Path) -> None:
    case = prepared(tmp_path, "transformer")
    found = quantize(
        case.source, data=str(case.data), recipe=Recipe(shard_size="2kB"), output=case.out / "m.qdq.onnx", cache=False
    )
    named = found.manifest["files"]["qdq"]["data"]
    files = sorted(case.out.glob("*.data"))
    assert len(files) > 1
    assert [one["name"] for one in named] == [path.name for path in files]
    assert [one["sha256"] for one in named] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    onnx.checker.check_model(str(case.out / "m.qdq.onnx"))
