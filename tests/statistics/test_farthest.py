"""Which samples a result must be run on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.statistics.farthest import Farthest, farthest
from qcompiler.statistics.ranges import Range, Ranges
from tests.kit.rewrite import graph_proto, model, to_graph

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def found(*nodes: Any, ranges: dict[str, Range], **weights: Any) -> Farthest:
    """Of a graph that goes to half (h) and back (r to y)."""
    proto = model(
        ("Cast", "x", "h", {"to": HALF}), *nodes, ("Cast", "r", "y", {"to": FLOAT}), weights=weights, opset=21
    )
    x = ranges.get("x", Range(-1, 1, 0, 0))
    return farthest(to_graph(proto), Ranges({"x": x, **ranges}))


def test_no_sample_is_needed_where_none_comes_near_to_what_half_holds() -> None:
    near = found(("Mul", "h h", "s"), ("Sigmoid", "s", "r"), ranges={"s": Range(0, 8000, 3, 4), "r": Range(0, 1, 0, 4)})
    assert near == Farthest()


@pytest.mark.parametrize(
    ("seen", "places"),
    [
        (Range(0, 8200, 3, 4), {4}),
        (Range(-8200, 10, 3, 4), {3}),
        (Range(-9000, 70000, 3, 4), {3, 4}),
    ],
)
def test_the_sample_that_reaches_farthest_is_needed(seen: Range, places: set[int]) -> None:
    assert found(("Mul", "h h", "s"), ("Sigmoid", "s", "r"), ranges={"s": seen, "r": Range(0, 1)}).places == places


def test_what_nobody_knows_the_sample_of_needs_all() -> None:
    far = found(("Mul", "h h", "r"), ranges={"r": Range(0, 9000)})
    assert "'r' reaches 9000" in far.why_all
    endless = found(("Mul", "h h", "r"), ranges={"r": Range(0, np.inf, 1, 1)})
    assert "'r' reaches inf" in endless.why_all


def test_an_unknown_range_needs_all_unless_a_cast_is_known_behind_it() -> None:
    nodes = [("Mul", "h h", "r")]
    assert "nothing is known of the range of 'r'" in found(*nodes, ranges={}).why_all
    assert found(*nodes, ranges={"y": Range(0, 1, 0, 0)}) == Farthest()


def test_what_is_cast_twice_is_known_by_either() -> None:
    """A mask of whole numbers that is read in float and in half."""
    nodes = [("Cast", "open", "m", {"to": HALF}), ("Cast", "open", "f", {"to": FLOAT}), ("Mul", "h m", "r")]
    proto = model(
        ("Cast", "x", "h", {"to": HALF}), *nodes, ("Cast", "r", "y", {"to": FLOAT}),
        inputs={"x": (2, 4), "open": (np.int64, (2, 4))}, outputs=("y", "f"), opset=21,
    )  # fmt: skip
    known = {"x": Range(-20, 20, 0, 1), "r": Range(-20, 20, 0, 1)}
    assert farthest(to_graph(proto), Ranges(known | {"f": Range(0, 1, 0, 0)})) == Farthest()
    assert "nothing is known of the range of 'm'" in farthest(to_graph(proto), Ranges(known)).why_all


@pytest.mark.parametrize(
    ("node", "seen", "expected"),
    [
        (("Div", "h d", "r"), Range(0.5, 2, 6, 7), {6}),
        (("Div", "h d", "r"), Range(-2, -0.5, 6, 7), {7}),
        (("Div", "h d", "r"), Range(-1, 1, 6, 7), "nothing keeps 'd' away from 0"),
        (("Div", "h d", "r"), Range(0, 1, 6, 7), "nothing keeps 'd' away from 0"),
        (("Reciprocal", "d", "r"), Range(0.5, 2, 6, 7), {6}),
        (("Sqrt", "d", "r"), Range(0.5, 2, 6, 7), {6}),
        (("Sqrt", "d", "r"), Range(-2, -1, 6, 7), "nothing keeps 'd' away from 0"),
        (("Log", "d", "r"), Range(0, 1, 6, 7), "nothing keeps 'd' away from 0"),
        (("Pow", "d two", "r"), Range(-1, 1, 6, 7), set()),
        (("Pow", "d half", "r"), Range(0.1, 1, 6, 7), {6}),
        (("Pow", "d half", "r"), Range(-1, 1, 6, 7), "nothing keeps 'd' away from 0"),
    ],
)
def test_poles(node: Any, seen: Range, expected: set[int] | str) -> None:
    nodes = [("Add", "h one", "d"), node]
    weights = {"one": np.float16(1), "two": np.float16(2), "half": np.float16(0.5)}
    used = {name: value for name, value in weights.items() if name in f"one {node[1]}".split()}
    result = found(*nodes, ranges={"d": seen, "r": Range(-5, 5, 1, 2)}, **used)
    if isinstance(expected, str):
        assert expected in result.why_all
    else:
        assert result == Farthest(frozenset(expected))


def test_a_divisor_that_is_a_constant_is_no_matter_of_samples_unless_it_is_zero() -> None:
    ranges = {"r": Range(-1, 1, 0, 0)}
    assert found(("Div", "h k", "r"), ranges=ranges, k=np.float16(3)) == Farthest()
    assert "away from 0" in found(("Div", "h k", "r"), ranges=ranges, k=np.float16(0)).why_all


@pytest.mark.parametrize(("lowest", "all_of_them"), [(-30000.0, False), (-65504.0, True)])
def test_a_mask_that_the_logits_cannot_push_out_of_half_needs_no_sample(lowest: float, all_of_them: bool) -> None:
    """What a clamp in the result bounds counts, not what the float model's mask reaches."""
    nodes = [
        ("Where", "open none mask", "where"),
        ("Max", "where bottom", "clamped"),
        ("Cast", "clamped", "m", {"to": HALF}),
        ("Add", "h m", "s"),
        ("Softmax", "s", "r"),
    ]
    weights = {"none": np.float32(0), "mask": np.float32(-3.4e38), "bottom": np.float32(lowest)}
    proto = model(
        ("Cast", "x", "h", {"to": HALF}), *nodes, ("Cast", "r", "y", {"to": FLOAT}),
        inputs={"x": (2, 4), "open": (np.bool_, (2, 4))}, weights=weights, opset=21,
    )  # fmt: skip
    lows = {"where": Range(-3.4e38, 0, 5, 0), "s": Range(-3.4e38, 20, 5, 1)}
    result = farthest(to_graph(proto), Ranges({"x": Range(-20, 20, 0, 1), "r": Range(0, 1, 0, 0), **lows}))
    assert ("masked throughout" in result.why_all) == all_of_them
    assert not result.places


def test_a_mask_that_is_multiplied_needs_the_sample_that_is_masked() -> None:
    """As exporters of old write it: (1 - mask) times the lowest float, which in the result is clamped."""
    nodes = [
        ("Sub", "one open", "closed"),
        ("Mul", "closed lowest", "mask"),
        ("Max", "mask bottom", "clamped"),
        ("Cast", "clamped", "m", {"to": HALF}),
        ("Add", "h m", "s"),
        ("Softmax", "s", "r"),
    ]
    weights = {"one": np.float32(1), "lowest": np.float32(-3.4e38), "bottom": np.float32(-30000)}
    proto = model(
        ("Cast", "x", "h", {"to": HALF}), *nodes, ("Cast", "r", "y", {"to": FLOAT}),
        inputs={"x": (2, 4), "open": (2, 4)}, weights=weights, opset=21,
    )  # fmt: skip
    seen = {"open": Range(0, 1, 5, 0), "closed": Range(0, 1, 0, 5), "mask": Range(-3.4e38, 0, 5, 0)}
    seen |= {"x": Range(-20, 20, 0, 1), "s": Range(-3.4e38, 20, 5, 1), "r": Range(0, 1, 0, 0)}
    assert farthest(to_graph(proto), Ranges(seen)) == Farthest(frozenset({5}))


def test_quantizers_clip() -> None:
    nodes = [("QuantizeLinear", "h s", "q", {"output_dtype": onnx.TensorProto.INT8}), ("DequantizeLinear", "q s", "r")]
    assert found(*nodes, ranges={}, s=np.float16(0.1)) == Farthest()
    assert "more than its type holds" in found(*nodes, ranges={}, s=np.float16(1000)).why_all
    for scale in (0, np.inf, np.nan):
        assert (
            "a scale that is not constant, finite and above 0" in found(*nodes, ranges={}, s=np.float16(scale)).why_all
        )


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (("Tan", "h", "r"), "(Tan) can make values that are not finite"),
        (("Mul", "h k", "r"), "the constant 'k' is not finite throughout"),
        (("LayerNormalization", "h g", "r", {"epsilon": 0.0}), "has an epsilon of 0"),
    ],
)
def test_what_ranges_do_not_tell_needs_all(node: Any, why: str) -> None:
    weights = {"k": np.float16(np.inf)} if "k" in node[1] else {"g": np.ones(4, np.float16)} if "g" in node[1] else {}
    assert why in found(node, ranges={"r": Range(0, 1, 0, 0)}, **weights).why_all


def test_indices_made_of_floats_and_nested_graphs_need_all() -> None:
    nodes = [("ArgMax", "h", "i", {"keepdims": 0}), ("Gather", "h i", "r")]
    assert "(ArgMax) makes other values than floats" in found(*nodes, ranges={"r": Range(0, 1)}).why_all
    then, other = graph_proto([("Neg", "h", "t")], {}, ["t"]), graph_proto([("Abs", "h", "o")], {}, ["o"])
    branches = ("If", "flag", "r", {"then_branch": then, "else_branch": other})
    assert "(If) is not looked into" in found(branches, ranges={"r": Range(0, 1)}, flag=np.array(True)).why_all
