"""A scale per row at run time: equal to numpy bit for bit in ONNX Runtime's integers, alike in both forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompiler.numerics.rounding import quantize_weight
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.passes.base import Changed, Report, Skipped
from qcompiler.passes.quantize.dynamic_quant import RULE, SMALLEST, DynamicQuant
from qcompiler.plan import Decision, Plan
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import model, to_graph, whole

FORMS = ("integer", "pairs")
WEIGHTS = np.random.default_rng(3).standard_normal((24, 10)).astype(np.float32)


def planned(*nodes: str, axis: int | None = 1) -> Plan:
    decisions = {name: Decision(name, "MatMul", DType.INT8, RULE, "") for name in nodes}
    return Plan(decisions, axes=dict.fromkeys(nodes, axis))


def quantized(proto: onnx.ModelProto, form: str, *nodes: str, axis: int | None = 1) -> tuple[Any, Report]:
    """Runs the pass and asserts what holds for any rewrite; a second run changes nothing."""
    graph = to_graph(proto)
    one = DynamicQuant(planned(*nodes, axis=axis), form)
    report = one(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    written = whole(graph).SerializeToString(deterministic=True)
    assert not one(graph).changed
    assert whole(graph).SerializeToString(deterministic=True) == written
    return graph, report


def product(weights: Any = WEIGHTS) -> onnx.ModelProto:
    return model(
        ("MatMul", "x w", "y"), inputs={"x": ("batch", "length", len(weights))}, weights={"w": weights}, opset=21
    )


def integers(x: Any, weights: Any, axis: int | None = 1) -> Any:
    """The product as it is defined: rows rounded with scales of their own, summed in int32, scaled in float32."""
    values, scales = quantize_weight(weights, axis)
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(SMALLEST["integer"]))
    rows = largest * np.float32(1 / 127)
    rounded = np.rint(x / rows).astype(np.int32)
    assert np.abs(rounded).max(initial=0) <= 127
    return (rounded @ values.astype(np.int32)).astype(np.float32) * rows * scales


finite = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=50)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 5), st.just(24)), elements=finite))
def test_integers_equal_numpy_to_the_bit(x: Any) -> None:
    weights = WEIGHTS.copy()
    weights[1::2] = 0  # on processors without VNNI, sums of two neighbours saturate at 16 bits
    graph, _ = quantized(product(weights), "integer", "Y")
    np.testing.assert_array_equal(Session(graph).run({"x": x})["y"], integers(x, weights))


@pytest.mark.parametrize("axis", [1, None], ids=["channel", "tensor"])
def test_both_forms_are_the_same_numbers(axis: int | None) -> None:
    x = np.random.default_rng(4).standard_normal((2, 7, 24)).astype(np.float32) * np.float32(10)
    x[:, 3] *= 1e3
    found = [Session(quantized(product(), form, "Y", axis=axis)[0]).run({"x": x})["y"] for form in FORMS]
    reference = integers(x, WEIGHTS, axis)
    for one in found:
        assert sqnr_of(reference, one - reference) > 60
    assert sqnr_of(x @ WEIGHTS, found[0] - x @ WEIGHTS) > 30


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_spikes_hurts_no_other(form: str) -> None:
    x = np.random.default_rng(5).standard_normal((1, 6, 24)).astype(np.float32)
    session = Session(quantized(product(), form, "Y")[0])
    quiet = session.run({"x": x})["y"]
    x[0, 0] *= 1e4
    spiking = session.run({"x": x})["y"]
    np.testing.assert_array_equal(spiking[0, 1:], quiet[0, 1:])
    np.testing.assert_allclose(spiking[0, 0], quiet[0, 0] * 1e4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_give_zeros(form: str) -> None:
    found = Session(quantized(product(), form, "Y")[0]).run({"x": np.zeros((1, 3, 24), np.float32)})["y"]
    np.testing.assert_array_equal(found, np.zeros((1, 3, 10), np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_layers_share_the_rounding_of_what_they_read(form: str) -> None:
    proto = model(
        ("MatMul", "x w", "a"),
        ("MatMul", "x v", "b"),
        ("Add", "a b", "y"),
        inputs={"x": (1, 5, 24)},
        weights={"w": WEIGHTS, "v": WEIGHTS[::-1].copy()},
        opset=21,
    )
    graph, report = quantized(proto, form, "A", "B")
    ops = [node.op for node in graph.nodes]
    assert (ops.count("QuantizeLinear"), ops.count("ReduceMax")) == (1, 1)
    assert report.notes == tuple(
        Changed(name, f"INT8 x INT8, a scale per row at run time ({form})") for name in ("A", "B")
    )
    assert {node.op for node in graph.nodes if node.name in ("A", "B")} == {
        "MatMulInteger" if form == "integer" else "MatMul"
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flipped", [0, 1])
@pytest.mark.parametrize("opset", [17, 21])
def test_a_gemm_keeps_its_bias(form: str, flipped: int, opset: int) -> None:
    x = np.random.default_rng(6).standard_normal((9, 24)).astype(np.float32)
    bias = np.arange(10, dtype=np.float32) * 10
    proto = model(
        ("Gemm", "x w c", "y", {"transB": flipped, "beta": 2.0}),
        inputs={"x": ("rows", 24)},
        weights={"w": WEIGHTS.T.copy() if flipped else WEIGHTS, "c": bias},
        opset=opset,
    )
    graph, _ = quantized(proto, form, "Y")
    exact = x @ WEIGHTS + 2 * bias
    assert sqnr_of(x @ WEIGHTS, Session(graph).run({"x": x})["y"] - exact) > 35


@pytest.mark.parametrize(
    ("spec", "inputs", "weights", "why"),
    [
        (("Conv", "x w", "y"), {"x": (1, 4, 5, 5)}, {"w": np.ones((3, 4, 1, 1), np.float32)}, "Conv has no rows"),
        (("Gemm", "x w", "y", {"transA": 1}), {"x": (24, 5)}, {"w": WEIGHTS}, "its rows do not lie on the last axis"),
        (("Gemm", "x w", "y", {"alpha": 0.5}), {"x": (5, 24)}, {"w": WEIGHTS}, "its rows do not lie on the last axis"),
        (("MatMul", "x w", "y"), {"x": (5, 24), "w": (24, 10)}, {}, "no constant float matrix"),
        (("Gemm", "x w c", "y", {"beta": 0.5}), {"x": (5, 24), "c": (10,)}, {"w": WEIGHTS}, "what it adds is computed"),
    ],
)  # fmt: skip
def test_refused(spec: Any, inputs: Any, weights: Any, why: str) -> None:
    proto = model(spec, inputs=inputs, weights=weights, opset=21)
    graph = to_graph(proto)
    before = whole(graph).SerializeToString(deterministic=True)
    (note,) = DynamicQuant(planned("Y"))(graph).notes
    assert isinstance(note, Skipped)
    assert why in note.text
    assert whole(graph).SerializeToString(deterministic=True) == before


def test_other_decisions_are_none_of_its_business() -> None:
    graph = to_graph(product())
    plan = Plan({"Y": Decision("Y", "MatMul", DType.INT8, "linear", "")})
    assert DynamicQuant(plan)(graph).notes == ()
