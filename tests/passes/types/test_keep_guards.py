"""Zeros in FP16 that guard a division become its smallest number; other zeros stay."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from qcompiler.passes.types.keep_guards import KeepGuards
from qcompiler.passes.types.widen_floats import WidenFloats
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, content, model, to_graph

F16, BF16, F32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
LENGTH = ("ReduceL2", "x", "l", {"axes": [1]})
NORMALIZED: dict[str, list[Spec]] = {
    "kept above, by Clip": [LENGTH, ("Clip", "l guard", "d"), ("Div", "x d", "y")],
    "kept above, by Max": [LENGTH, ("Max", "guard l", "d"), ("Expand", "d whole", "e"), ("Div", "x e", "y")],
    "added under a root": [("Mul", "x x", "q"), ("ReduceMean", "q", "v", {"axes": [1]}), ("Add", "v guard", "s"),
                           ("Sqrt", "s", "d"), ("Reciprocal", "d", "r"), ("Mul", "x r", "y")],
    "in float32 between Casts": [LENGTH, ("Add", "l guard", "s"), ("Cast", "s", "w", {"to": TensorProto.FLOAT}),
                                 ("Cast", "x", "x32", {"to": TensorProto.FLOAT}), ("Div", "x32 w", "y")],
}  # fmt: skip


def proto(nodes: list[Spec], dtype: np.dtype[Any] = F16, guard: float = 0.0) -> Any:
    weights = {"guard": np.full((), guard, dtype), "whole": np.asarray([2, 4])}
    read = {name for node in nodes for name in node[1].split()}
    held = {name: value for name, value in weights.items() if name in read}
    return model(*nodes, inputs={"x": (dtype, (2, 4))}, weights=held)


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_row_of_zeros_is_no_nan_and_other_rows_are_as_they_were(name: str) -> None:
    x = np.asarray([[0, 0, 0, 0], [3, -4, 12, 84]], np.float32)
    graph = to_graph(proto(NORMALIZED[name]))
    assert KeepGuards()(graph).changed == 1
    before = content(graph)
    assert not KeepGuards()(graph).changed
    assert content(graph) == before
    WidenFloats()(graph)
    found = Session(graph).run({"x": x})["y"]
    size = np.sqrt((x**2).mean(axis=1, keepdims=True)) if "root" in name else np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(found, x / np.maximum(size, 1e-12), rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "dtype", "guard"),
    [
        (NORMALIZED["kept above, by Clip"], F32, 0.0),
        (NORMALIZED["kept above, by Clip"], F16, 1e-3),
        ([LENGTH, ("Add", "l guard", "d"), ("Div", "d x", "y")], F16, 0.0),
        ([("Clip", "x guard", "y")], F16, 0.0),
        ([("Clip", "x guard", "c"), ("Log", "c", "y")], F16, 0.0),
        ([("Clip", "x guard", "c"), ("Exp", "c", "e"), ("Div", "x e", "y")], F16, 0.0),
    ],
    ids=["float32", "not zero", "divided", "a Relu", "of a logarithm", "no divisor of 0"],
)
def test_other_zeros_stay(nodes: list[Spec], dtype: np.dtype[Any], guard: float) -> None:
    graph = to_graph(proto(nodes, dtype, guard))
    before = content(graph)
    assert not KeepGuards()(graph).changed
    assert content(graph) == before
