"""Models merged of two, and axes that are free in the file and not in deployment: from the model to the artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.errors import DataError
from qcompiler.recipe.recipe import Recipe
from qcompiler.tools.verify import verify
from tests.kit.rewrite import graph_proto, model

RNG = np.random.default_rng(4)
SIZE = 64


def merged() -> onnx.ModelProto:
    """If(use_cache) {two layers over [past; x]} else {the same two over x}; the weights stand outside."""

    def branch(start: list[Any], reads: str, end: str) -> onnx.GraphProto:
        first = [("MatMul", f"{reads} up", f"{end}u"), ("Relu", f"{end}u", f"{end}r"), ("MatMul", f"{end}r down", end)]
        return graph_proto([*start, *first], {}, [end])

    branches = {
        "then_branch": branch([("Concat", "past x", "all", {"axis": 1})], "all", "p"),
        "else_branch": branch([], "x", "q"),
    }
    inputs = {"x": ("batch", "seq", SIZE), "past": ("batch", "past", SIZE), "use_cache": (bool, (1,))}
    weights = {
        name: (RNG.standard_normal(shape) / 8).astype(np.float32)
        for name, shape in (("up", (SIZE, 2 * SIZE)), ("down", (2 * SIZE, SIZE)))
    }
    return model(("If", "use_cache", "y", branches), inputs=inputs, weights=weights, opset=18)


def samples(count: int = 24, flag: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "x": RNG.standard_normal((1, 5, SIZE)).astype(np.float32),
            "past": RNG.standard_normal((1, 3 + i % 4, SIZE)).astype(np.float32),
            "use_cache": np.array([flag]),
        }
        for i in range(count)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(merged(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_branch_that_is_used_is_quantized_where_the_input_is_fixed(source: Path, tmp_path: Path) -> None:
    recipe = Recipe(fix_input={"use_cache": True}, fix_shape={"seq": "5"})
    result = quantize(source, data=samples(), recipe=recipe, output=tmp_path / "o" / "m.onnx")
    assert sum(one.precision.quantized for one in result.plan) == 2
    made = onnx.load(result.qdq_path)
    assert not [node for node in made.graph.node if node.op_type == "If"]
    assert {one.name for one in made.graph.input} == {"x", "past"}
    assert result.manifest["fixed"]["use_cache"] == "constant: True"
    assert result.manifest["recipe"]["fix_shape"] == {"seq": "5"}
    assert result.qdq_path.stat().st_size < source.stat().st_size / 2
    again = verify(source, result.qdq_path, data=samples(3), recipe=recipe)
    assert (again.worst_sqnr_db or 0) > 30


def test_data_that_takes_the_other_branch_is_refused(source: Path, tmp_path: Path) -> None:
    recipe = Recipe(fix_input={"use_cache": True})
    with pytest.raises(DataError, match="input 'use_cache' is False, and --fix-input made it True"):
        quantize(source, data=samples(flag=False), recipe=recipe, output=tmp_path / "m.qdq.onnx")


@pytest.mark.parametrize("target", ["tensorrt-rtx", "onnxruntime"])
def test_without_it_the_input_is_named_and_no_weight_is_stored_twice(target: str, source: Path, tmp_path: Path) -> None:
    recipe = Recipe(target=target, allow_broken=True)
    result = quantize(source, data=samples(), recipe=recipe, output=tmp_path / "o" / "m.onnx")
    told = [text for text in result.manifest["warnings"] if "--fix-input use_cache=true" in text]
    assert len(told) == 1
    assert result.qdq_path.stat().st_size <= source.stat().st_size * 1.05
