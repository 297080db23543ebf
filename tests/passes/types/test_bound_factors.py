"""16-bit infinities that multiply become the end of their type; those that are added, picked or compared stay."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.ir import graph as graphs
from qcompiler.passes.types.bound_factors import BoundFactors
from qcompiler.passes.types.widen_floats import WidenFloats
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, content, model, to_graph

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
HALVES = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)


def endless(dtype: np.dtype[Any], *shape: int) -> Any:
    return np.full(shape, -np.inf).astype(dtype)


def masked(graph: gs.Graph, **feeds: Any) -> Any:
    """What the graph computes of masks and scores once it is float32; the pass changes something, and once only."""
    assert BoundFactors()(graph).changed
    before = content(graph)
    assert not BoundFactors()(graph).changed
    assert content(graph) == before
    WidenFloats()(graph)
    return Session(graph).run(feeds)["y"]


def encoder(dtype: np.dtype[Any], *front: Spec, factor: str, weights: dict[str, Any]) -> gs.Graph:
    """softmax(x + (1 - mask) * factor), as older encoders mask; `front` makes the factor."""
    nodes = [("Sub", "one mask", "other"), *front, ("Mul", f"other {factor}", "m"), ("Add", "x m", "s"),
             ("Softmax", "s", "y")]  # fmt: skip
    one = np.ones((), dtype)
    return to_graph(model(*nodes, inputs={"x": (dtype, (2, 4)), "mask": (dtype, (2, 4))},
                          weights={"one": one, **weights}, opset=22))  # fmt: skip


def constant(dtype: np.dtype[Any]) -> Spec:
    return ("Constant", "", "far", {"value": numpy_helper.from_array(endless(dtype), "v")})


MASK = np.asarray([[1, 1, 0, 0], [1, 0, 1, 1]], np.float32)
SCORES = np.arange(8, dtype=np.float32).reshape(2, 4)


def expected() -> Any:
    held = np.where(MASK, np.exp(SCORES - 8), 0)
    return held / held.sum(axis=1, keepdims=True)


@HALVES
def test_a_mask_that_was_rounded_to_infinity_masks_again(dtype: np.dtype[Any]) -> None:
    for graph in (
        encoder(dtype, factor="far", weights={"far": endless(dtype)}),
        encoder(dtype, constant(dtype), factor="far", weights={}),
        encoder(dtype, factor="far", weights={"far": endless(dtype, 2, 1)}),
    ):
        np.testing.assert_allclose(masked(graph, x=SCORES, mask=MASK), expected(), rtol=1e-5)


@HALVES
def test_the_end_is_that_of_the_type_and_keeps_the_sign(dtype: np.dtype[Any]) -> None:
    far = np.asarray([-np.inf, np.inf, -np.inf, np.inf]).astype(dtype)
    graph = to_graph(model(("Mul", "x far", "y"), inputs={"x": (dtype, (2, 4))}, weights={"far": far}, opset=22))
    BoundFactors()(graph)
    found = graphs.constant_value(graph.nodes[0].inputs[1])
    end = {F16: 65504, BF16: 255 * 2.0**120}[dtype]
    assert found is not None
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), [-end, end, -end, end])


@HALVES
def test_an_infinity_that_is_filled_in_or_repeated_on_the_way_is_found(dtype: np.dtype[Any]) -> None:
    filled = ("ConstantOfShape", "sizes", "far", {"value": numpy_helper.from_array(endless(dtype, 1), "v")})
    repeated = (("Unsqueeze", "few zero", "row"), ("Expand", "row sizes", "far"))
    cast = (("Cast", "far32", "far", {"to": helper.np_dtype_to_tensor_dtype(dtype)}),)
    for front, weights in (((filled,), {}), (repeated, {"few": endless(dtype, 4), "zero": np.zeros(1, np.int64)})):
        graph = encoder(dtype, ("Shape", "x", "sizes"), *front, factor="far", weights=weights)
        np.testing.assert_allclose(masked(graph, x=SCORES, mask=MASK), expected(), rtol=1e-5)
    graph = encoder(dtype, *cast, factor="far", weights={"far32": np.full((), -np.inf, np.float32)})
    assert not BoundFactors()(graph).changed  # a float32 that is infinite was not rounded to it


@HALVES
@pytest.mark.parametrize("form", ["triangle", "chosen", "constant"])
def test_a_causal_mask_that_is_multiplied_by_what_the_cache_holds(dtype: np.dtype[Any], form: str) -> None:
    """As decoders write it: triu(full(-inf), 1) * (key > position)."""
    above = np.triu(np.ones((4, 4), np.bool_), 1)
    front: dict[str, list[Spec]] = {
        "triangle": [("Expand", "far square", "full"), ("Trilu", "full one", "causal", {"upper": 1})],
        "chosen": [("Where", "above far none", "causal")],
        "constant": [],
    }
    held = {"far": endless(dtype), "none": np.zeros((), dtype), "square": np.asarray([4, 4]), "one": np.asarray(1),
            "above": above, "causal": np.where(above, endless(dtype), np.zeros((), dtype))}  # fmt: skip
    read = {name for node in (*front[form], ("Mul", "causal k")) for name in node[1].split()}
    made = {node[2] for node in front[form]}
    graph = to_graph(model(*front[form], ("Mul", "causal k", "m"), ("Add", "x m", "s"), ("Softmax", "s", "y"),
                           inputs={"x": (dtype, (4, 4)), "k": (dtype, (4, 4))},
                           weights={name: held[name] for name in read - made - {"k"}}, opset=22))  # fmt: skip
    x, later = np.zeros((4, 4), np.float32), np.triu(np.ones((4, 4), np.float32), 1)
    found = masked(graph, x=x, k=later)
    np.testing.assert_allclose(found, np.tril(1 / np.arange(1, 5)[:, None] * np.ones(4)), rtol=1e-6)


@HALVES
def test_a_constant_of_16_bits_behind_a_cast_is_found(dtype: np.dtype[Any]) -> None:
    graph = to_graph(model(("Cast", "far", "wide", {"to": TensorProto.FLOAT}), ("Mul", "x wide", "y"),
                           weights={"far": endless(dtype)}, opset=22))  # fmt: skip
    found = masked(graph, x=np.zeros((2, 4), np.float32))
    np.testing.assert_array_equal(found, np.zeros((2, 4)))


@HALVES
def test_where_else_the_constant_is_read_it_stays_infinite(dtype: np.dtype[Any]) -> None:
    nodes = (("Mul", "x far", "m"), ("Where", "c m far", "y"))
    graph = to_graph(model(*nodes, inputs={"x": (dtype, (2, 4)), "c": (np.bool_, (2, 4))},
                           weights={"far": endless(dtype)}, opset=22))  # fmt: skip
    found = masked(graph, x=np.zeros((2, 4), np.float32), c=MASK.astype(bool))
    np.testing.assert_array_equal(found, np.where(MASK, 0, -np.inf))


def test_in_branches_as_well() -> None:
    scale = helper.make_node("Mul", ["x", "far"], ["scaled"])
    then = helper.make_graph([scale], "then", [], [helper.make_tensor_value_info("scaled", TensorProto.FLOAT16, None)])
    keep = helper.make_node("Identity", ["x"], ["kept"])
    other = helper.make_graph([keep], "else", [], [helper.make_tensor_value_info("kept", TensorProto.FLOAT16, None)])
    choice = ("If", "c", "y", {"then_branch": then, "else_branch": other})
    inputs = {"x": (F16, (2, 4)), "c": (np.bool_, ())}
    graph = to_graph(model(choice, inputs=inputs, weights={"far": endless(F16)}))
    found = masked(graph, x=np.zeros((2, 4), np.float32), c=np.asarray(True))
    np.testing.assert_array_equal(found, np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([("Add", "x far", "y")], {"far": endless(F16)}),
        ([("Max", "x far", "y")], {"far": endless(F16)}),
        ([("Mul", "x far", "y")], {"far": np.full((), -65504, F16)}),
        ([("Mul", "far k", "f"), ("Add", "x f", "y")], {"far": endless(F16), "k": np.full((), 0.5, F16)}),
    ],
    ids=["added", "compared", "finite", "times a number"],
)
def test_other_constants_stay(nodes: list[Spec], weights: dict[str, Any]) -> None:
    graph = to_graph(model(*nodes, inputs={"x": (F16, (2, 4))}, weights=weights))
    before = content(graph)
    assert not BoundFactors()(graph).changed
    assert content(graph) == before
