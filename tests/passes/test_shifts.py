"""Shifted activations: the numbers of a grid with a zero point, by a pair that has none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.numerics import rounding
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.passes import shifts
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.plan import Decision, FittedWeight, Plan, Quantizer
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, to_graph, whole

SPAN = (-0.17, 6.0)
RNG = np.random.default_rng(8)
W, BIAS = RNG.standard_normal((24, 16)).astype(np.float32), RNG.standard_normal(16).astype(np.float32)
LAYERS: dict[str, list[Spec]] = {
    "add": [("MatMul", "s w", "a"), ("Add", "a b", "y")],
    "add-turned": [("MatMul", "s w", "a"), ("Add", "b a", "y")],
    "scalar": [("MatMul", "s w", "a"), ("Add", "a c", "y")],
    "gemm": [("Gemm", "s w b", "y", {"alpha": 0.5})],
    "gemm-transposed": [("Gemm", "s v b", "y", {"transB": 1})],
}


def graph_of(*layer: Spec) -> gs.Graph:
    used = " ".join(str(one[1]) for one in layer).split()
    weights = {"w": W, "v": W.T.copy(), "b": BIAS, "c": np.float32(0.5)}
    return to_graph(
        model(
            ("Softplus", "x", "s"),
            *layer,
            inputs={"x": (6, 24)},
            weights={name: value for name, value in weights.items() if name in used},
            opset=21,
        )
    )


def plan(axis: int | None, node: str, op: str) -> Plan:
    quantizer = Quantizer("s", DType.INT8, SPAN[1], "test", SPAN[1], SPAN)
    return Plan.of([Decision(node, op, DType.INT8, "linear", "")]).with_(quantizers={"s": quantizer}, axes={node: axis})


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_numbers_are_those_of_a_zero_point(kind: str, per_channel: bool) -> None:
    x = (3 * RNG.standard_normal((6, 24))).astype(np.float32)
    found = []
    for shift in (True, False):
        graph = graph_of(*LAYERS[kind])
        layer = next(one for one in graph.nodes if one.op in ("MatMul", "Gemm"))
        axis = (0 if kind == "gemm-transposed" else 1) if per_channel else None
        InsertQDQ(plan(axis, layer.name, layer.op), shift=shift)(graph)
        onnx.checker.check_model(whole(graph), full_check=True)
        found.append((graph, Session(graph, optimize=False).run({"x": x})["y"]))
    (shifted, moved), (plain, expected) = found
    np.testing.assert_allclose(moved, expected, atol=2e-3, rtol=1e-3)
    zeros = [graphs.constant_value(node.inputs[2]) for node in shifted.nodes if node.op == "QuantizeLinear"]
    assert all(zero is not None and zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert len(shifted.nodes) == len(plain.nodes) + 1  # the Add in front of the pair is all that there is more
    named = {tensor.name for node in shifted.nodes for tensor in node.outputs}
    assert "a" not in named  # in front of its bias it is another tensor than the float model has
    assert "y" in named


def test_fitted_integers_are_summed_as_they_are_stored() -> None:
    graph = graph_of(*LAYERS["add"])
    fitted = FittedWeight(quantize_weight(W, 1)[0][::-1].copy(), np.full(16, 0.02, np.float32))
    x = (3 * RNG.standard_normal((6, 24))).astype(np.float32)
    InsertQDQ(plan(1, "A", "MatMul"), fitted={"A": fitted}, shift=True)(graph)
    found = Session(graph, optimize=False).run({"x": x})["y"]
    width, zero = rounding.grid(*SPAN)
    soft = np.log1p(np.exp(x))
    rounded = (np.clip(np.rint(soft / width) + zero, 0, 255) - zero) * width
    np.testing.assert_allclose(found, rounded @ (fitted.values * fitted.scales) + BIAS, atol=0.02, rtol=1e-3)


def test_the_shift_moves_the_unsigned_grid_onto_the_symmetric_one() -> None:
    quantizer = Quantizer("s", DType.INT8, SPAN[1], "test", SPAN[1], SPAN)
    width, zero = rounding.grid(*SPAN)
    moved = shifts.shift_of(quantizer)
    assert moved == pytest.approx((zero - 128) * width, rel=1e-3)
    assert moved == float(np.float16(moved))
    assert shifts.shift_of(Quantizer("s", DType.INT8, 3.0, "test", 3.0)) == 0.0
    huge = Quantizer("s", DType.INT8, 1e9, "test", 1e9, (0.0, 1e9))
    assert shifts.shift_of(huge) == pytest.approx(-128 * 1e9 / 255, rel=1e-3)


def test_without_a_bias_behind_it_a_layer_is_refused_by_name() -> None:
    graph = graph_of(("MatMul", "s w", "a"), ("Relu", "a", "y"))
    layer = next(one for one in graph.nodes if one.op == "MatMul")
    assert shifts.bias_behind(graph, layer) is None
    with pytest.raises(ValueError, match="'A' has no constant bias behind it"):
        shifts.take_off(graph, Names(graph), layer, 1.0, np.ones(16, np.float32))
