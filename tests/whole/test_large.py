"""A model that is worked on a few layers at a time becomes what it becomes where there is room for all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qcompiler
from qcompiler.ir import made, to_proto
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import chain
from qcompiler.support import memory
from tests.kit import glu


def in_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights of 16 bits behind Casts, as exporters of language models write them."""
    graph = proto.graph
    floats = [one for one in graph.initializer if len(one.dims) == 2 and one.data_type == onnx.TensorProto.FLOAT]
    casts = []
    for one in (one for one in floats if np.abs(numpy_helper.to_array(one)).max() < 6e4):  # no mask
        stored = numpy_helper.to_array(one).astype(np.float16)
        casts.append(onnx.helper.make_node("Cast", [f"{one.name}/half"], [one.name], to=onnx.TensorProto.FLOAT))
        one.CopyFrom(numpy_helper.from_array(stored, f"{one.name}/half"))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with large weights is done with those of a test."""
    for room in (memory, made, to_proto):
        monkeypatch.setattr(room, "SMALLEST", 1 << 14)
    monkeypatch.setattr(chain, "LARGE", 1)


def compiled(model: Path, folder: Path, **wanted: Any) -> tuple[bytes, dict[str, Any]]:
    folder.mkdir()
    output = folder / "q.onnx"
    qcompiler.quantize(model, data=glu.feeds(8), recipe=Recipe(**wanted), output=output, cache=False)
    assert sorted(one.name for one in folder.iterdir()) == ["q.manifest.json", "q.onnx", "q.report.html"]
    return output.read_bytes(), json.loads((folder / "q.manifest.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize(
    "wanted",
    [
        {"precision": "int8", "calibrator": "entropy"},
        {"precision": "int8", "smooth_quant": {"alpha": 0.5}},
        {"precision": "int4-weight", "weight_only": {"method": "gptq", "block_size": 32}},
        {"precision": "int4-weight", "weight_only": {"method": "awq", "block_size": 32}},
    ],
    ids=["int8", "smooth_quant", "gptq", "awq"],
)
def test_the_result_does_not_depend_on_the_memory_that_there_is(tmp_path: Path, wanted: dict[str, Any]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(in_half(glu.stack(channels=glu.OUTLIERS, spiking=(1,), layers=2)), path)
    free, known = compiled(path, tmp_path / "free", **wanted)
    tight, told = compiled(path, tmp_path / "tight", max_memory="6MB", **wanted)
    assert tight == free
    assert told["plan"] == known["plan"]
    assert {**told["verification"], "seconds": 0} == {**known["verification"], "seconds": 0}
