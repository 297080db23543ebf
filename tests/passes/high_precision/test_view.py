"""What typing knows of values: ranges seen through what only moves them, and what a conversion to 16 bits costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import element_types
from qcompiler.passes.high_precision._view import CHUNK, NUMPY, TypingView, loss_of
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.target import DType
from tests.kit.rewrite import Spec, graph_proto, model, to_graph


def view(*nodes: Spec, seen: dict[str, Range] | None = None, **options: Any) -> TypingView:
    graph = to_graph(model(*nodes, **options))
    return TypingView(graph, DType.FP16, Ranges(seen or {}), element_types.infer(graph))


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_the_loss_of_a_constant_is_that_of_its_conversion(dtype: DType) -> None:
    values = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    error = values - values.astype(NUMPY[dtype]).astype(np.float32)
    found = loss_of(values, dtype)
    assert found.largest == pytest.approx(np.abs(values).max())
    assert found.absolute == pytest.approx(np.abs(error).max())
    assert found.relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(values))


def test_what_16_bits_hold_exactly_loses_nothing() -> None:
    assert loss_of(np.arange(-64, 65).astype(np.float32), DType.BF16).absolute == 0
    assert loss_of(np.zeros((2, 0), np.float32), DType.FP16).relative == 0


def test_what_is_too_large_shows_in_the_largest_value_alone() -> None:
    found = loss_of(np.array([1e6, 1.0, np.inf, np.nan], np.float32), DType.FP16)
    assert (found.largest, found.absolute, found.relative) == (1e6, 0.0, 0.0)


def test_pieces_of_a_large_constant_add_up() -> None:
    values = np.full(CHUNK + 3, 0.1, np.float32)
    whole, part = loss_of(values, DType.FP16), loss_of(values[:3], DType.FP16)
    assert whole.absolute == part.absolute
    assert whole.relative == pytest.approx(part.relative)


def test_a_range_is_seen_through_what_moves_values_and_not_through_what_computes() -> None:
    nodes: tuple[Spec, ...] = (("Relu", "x", "r"), ("Transpose", "r", "t"), ("Exp", "t", "e"), ("Neg", "e", "y"))
    found = view(*nodes, seen={"r": Range(0.0, 3.0)})
    tensors = found.graph.tensors()
    assert found.range(tensors["t"]) == Range(0.0, 3.0)
    assert found.range(tensors["e"]) is None


def test_what_is_known_goes_before_what_was_observed() -> None:
    found = view(("Relu", "x", "r"), ("Neg", "r", "y"), seen={"r": Range(0.0, 9.0)})
    found.known["r"] = Range(0.0, 1.0)
    assert found.range(found.graph.tensors()["r"]) == Range(0.0, 1.0)


def test_a_dequantized_constant_is_bounded_by_its_largest_integer_and_scale() -> None:
    held = {"w8": np.array([[-100, 5], [3, 90]], np.int8), "s": np.array([0.5, 0.25], np.float32)}
    nodes: tuple[Spec, ...] = (("DequantizeLinear", "w8 s z", "w", {"axis": 1}), ("Add", "x w", "y"))
    found = view(*nodes, inputs={"x": (2, 2)}, weights={**held, "z": np.zeros(2, np.int8)}, opset=21)
    assert found.range(found.graph.tensors()["w"]) == Range(-50.0, 50.0)


def test_an_output_has_no_only_consumer() -> None:
    found = view(("Relu", "x", "r"), ("Neg", "r", "y"))
    assert found.only_consumer(found.graph.tensors()["r"]) is found.graph.nodes[1]
    shared = view(("Relu", "x", "r"), ("Neg", "r", "y"), outputs=("r", "y"))
    assert shared.only_consumer(shared.graph.tensors()["r"]) is None
    assert shared.is_output(shared.graph.tensors()["r"])


def test_bodies_of_an_if_are_typed_and_their_outputs_are_outputs() -> None:
    branches = {
        "then_branch": graph_proto([("Relu", "x", "t")], {}, ["t"]),
        "else_branch": graph_proto([("Neg", "x", "e")], {}, ["e"]),
    }
    found = view(("If", "c", "y", branches), inputs={"x": (2, 4), "c": (np.bool_, ())})
    assert [found.nodes[0].op, {node.op for node in found.nodes[1:]}] == ["If", {"Relu", "Neg"}]
    inner = [node for node in found.nodes if node.op != "If"]
    assert all(id(found.homes[id(node)]) in found.typed_bodies for node in inner)
    assert all(found.is_output(node.outputs[0]) for node in inner)


def test_a_constant_is_measured_once() -> None:
    found = view(("Mul", "x c", "y"), weights={"c": np.float32(0.1)})
    constant = found.graph.tensors()["c"]
    assert found.loss(constant) is found.loss(constant)
