"""insert-qdq: where the pairs stand, what is stored, and what the graph then computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.numerics.rounding import STORED, Format, quantize_weight
from qcompiler.passes.base import Fact, Report, Skipped
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.placement import candidates
from qcompiler.runtime.session import Session
from qcompiler.target import DType, parse_target
from tests.kit import facts
from tests.kit.rewrite import model, random_feeds, to_graph, whole

RNG = np.random.default_rng(6)
AMAX = 3.0


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def plan_of(graph: gs.Graph, *, per_channel: bool = True, dtype: DType = DType.INT8) -> Plan:
    """Every candidate in INT8 (or FP8) with the same range."""
    found = candidates.find_candidates(graph, parse_target("tensorrt-rtx"))[0]
    return Plan.of(Decision(one.node, one.op, dtype, "linear", "") for one in found).with_(
        quantizers={one.activation: Quantizer(one.activation, dtype, AMAX, "test", AMAX) for one in found},
        axes={one.node: one.axis if per_channel else None for one in found},
    )


def insert(
    proto: onnx.ModelProto,
    *,
    per_channel: bool = True,
    dtype: DType = DType.INT8,
    corrections: Mapping[str, Any] | None = None,
    scales: Mapping[str, Any] | None = None,
) -> tuple[gs.Graph, Report]:
    graph = to_graph(proto)
    plan = plan_of(graph, per_channel=per_channel, dtype=dtype)
    report = InsertQDQ(plan, corrections or {}, scales or {})(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    assert facts.verify(Fact.QDQ, graph) == []
    return graph, report


def node(graph: gs.Graph, name: str) -> gs.Node:
    return next(one for one in graph.nodes if one.name == name)


def run(graph: gs.Graph, feeds: Any) -> Any:
    return Session(graph, optimize=False).run(feeds)["y"]


def fake(x: Any) -> Any:
    scale = np.float32(AMAX / 127)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale


def fake_fp8(x: Any) -> Any:
    scale = np.float32(AMAX / 448)
    return np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def fake_weight(w: Any, axis: int | None, format: Format = "int8") -> Any:
    stored, scales = quantize_weight(w, axis, format)
    shape = [1] * w.ndim
    if axis is not None:
        shape[axis] = -1
    return stored.astype(np.float32) * scales.reshape(shape)


MLP: dict[str, Any] = {"inputs": {"x": (6, 32)}}


def test_both_inputs_are_quantized_and_the_output_is_not() -> None:
    values = weights(w=(32, 16))
    graph, report = insert(model(("MatMul", "x w", "y"), weights=values, opset=21, **MLP))
    assert [one.op for one in graph.nodes].count("QuantizeLinear") == 1
    assert [one.op for one in graph.nodes].count("DequantizeLinear") == 2
    assert graphs.producer(graph.outputs[0]).op == "MatMul"  # type: ignore[union-attr]
    assert report.changed == 1
    feeds = random_feeds(graph)
    np.testing.assert_allclose(run(graph, feeds), fake(feeds["x"]) @ fake_weight(values["w"], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_fp8_computes_what_numpy_says(per_channel: bool) -> None:
    values = weights(w=(32, 16))
    proto = model(("MatMul", "x w", "y"), weights=values, opset=21, **MLP)
    graph, report = insert(proto, per_channel=per_channel, dtype=DType.FP8)
    assert [note.text for note in report.notes] == [f"FP8 x FP8, activation scale {AMAX / 448:.4g}"]
    feeds = random_feeds(graph)
    expected = fake_fp8(feeds["x"]) @ fake_weight(values["w"], 1 if per_channel else None, "fp8")
    np.testing.assert_allclose(run(graph, feeds), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
def test_scales_are_float32_zero_points_are_written_in_the_stored_type(dtype: DType) -> None:
    proto = model(("Conv", "x w", "y"), inputs={"x": (1, 4, 8, 8)}, weights=weights(w=(8, 4, 3, 3)), opset=21)
    graph, _ = insert(proto, dtype=dtype)
    wanted = STORED["fp8" if dtype is DType.FP8 else "int8"]
    for one in graph.nodes:
        if one.op not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (graphs.constant_value(tensor) for tensor in one.inputs[1:])
        assert scale is not None
        assert zero is not None
        assert scale.dtype == np.float32
        assert zero.dtype == wanted
        assert one.outputs[0].dtype == (wanted if one.op == "QuantizeLinear" else np.float32)
        assert scale.shape == zero.shape
        assert scale.min() > 0
        assert not zero.astype(np.float32).any()


@pytest.mark.parametrize(
    ("spec", "dims", "shape", "axis"),
    [
        (("Conv", "x w", "y"), (1, 4, 8, 8), (8, 4, 3, 3), 0),
        (("Conv", "x w", "y", {"group": 4}), (1, 4, 8, 8), (8, 1, 3, 3), 0),
        (("MatMul", "x w", "y"), (6, 32), (32, 16), 1),
        (("Gemm", "x w", "y"), (6, 32), (32, 16), 1),
        (("Gemm", "x w", "y", {"transB": 1}), (6, 32), (16, 32), 0),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_stored_as_int8_per_output_channel_and_no_float_copy_is_left(
    spec: Any, dims: Any, shape: tuple[int, ...], axis: int, per_channel: bool
) -> None:
    values = weights(w=shape)
    graph, _ = insert(model(spec, inputs={"x": dims}, weights=values, opset=21), per_channel=per_channel)
    constants = [t for t in graphs.tensors(graph) if isinstance(t, gs.Constant)]
    assert not any(t.values.dtype == np.float32 and t.values.size >= np.prod(shape) for t in constants)
    (stored,) = [t for t in constants if t.values.shape == shape]
    expected, scales = quantize_weight(values["w"], axis if per_channel else None)
    np.testing.assert_array_equal(stored.values, expected)
    dq = stored.outputs[0]
    assert dq.op == "DequantizeLinear"
    assert dq.attrs.get("axis") == (axis if per_channel else None)
    np.testing.assert_array_equal(dq.inputs[1].values, scales)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_given_scales_of_a_weight_are_stored_and_clip_it(dtype: DType, per_channel: bool) -> None:
    values = weights(w=(32, 16))
    proto = model(("MatMul", "x w", "y"), weights=values, opset=21, **MLP)
    axis = 1 if per_channel else None
    narrow = quantize_weight(values["w"], axis, "fp8" if dtype is DType.FP8 else "int8")[1] / 2
    graph, _ = insert(proto, per_channel=per_channel, dtype=dtype, scales={"Y": narrow})
    dq = graphs.producer(node(graph, "Y").inputs[1])
    assert dq is not None
    stored, scale, _ = (graphs.constant_value(tensor) for tensor in dq.inputs)
    assert stored is not None
    assert scale is not None
    np.testing.assert_array_equal(scale, narrow)
    top = 448 if dtype is DType.FP8 else 128
    assert np.count_nonzero(np.abs(stored.astype(np.float32)) == top) >= (16 if per_channel and top == 448 else 1)


def test_fp8_weights_that_read_one_activation_share_the_largest_of_their_single_scales() -> None:
    values = weights(w1=(32, 16), w2=(32, 16), w3=(16, 16))
    values["w2"] *= 3
    proto = model(
        ("MatMul", "x w1", "a"), ("MatMul", "x w2", "b"), ("Add", "a b", "c"), ("MatMul", "c w3", "y"),
        inputs={"x": (6, 32)}, weights=values, opset=21,
    )  # fmt: skip
    largest = {name: np.float32(np.abs(w).max() / 448) for name, w in values.items()}

    def scales_of(graph: gs.Graph) -> list[float]:
        pairs = [graphs.producer(node(graph, name).inputs[1]) for name in "ABY"]
        return [float(dq.inputs[1].values) for dq in pairs if dq is not None]

    shared, _ = insert(proto, per_channel=False, dtype=DType.FP8)
    np.testing.assert_allclose(scales_of(shared), [largest["w2"], largest["w2"], largest["w3"]], rtol=1e-6)
    clipped, _ = insert(proto, per_channel=False, dtype=DType.FP8, scales={"B": largest["w1"] / 2})
    np.testing.assert_allclose(scales_of(clipped), [largest["w1"], largest["w1"], largest["w3"]], rtol=1e-6)
    integers, _ = insert(proto, per_channel=False)
    np.testing.assert_allclose(scales_of(integers), [s * np.float32(448 / 127) for s in largest.values()], rtol=1e-6)


@pytest.mark.parametrize("precision", [DType.FP16, None])
def test_an_axis_without_a_quantized_precision_stores_only_the_weight(precision: DType | None) -> None:
    values = weights(w=(32, 16))
    graph = to_graph(model(("MatMul", "x w", "y"), weights=values, opset=21, **MLP))
    plan = Plan(axes={"Y": 1})
    if precision is not None:
        plan = plan.deciding(Decision("Y", "MatMul", precision, "qfem", ""))
    report = InsertQDQ(plan)(graph)
    assert [note.text for note in report.notes] == ["weight stored as INT8"]
    onnx.checker.check_model(whole(graph), full_check=True)
    assert [one.op for one in graph.nodes] == ["DequantizeLinear", "MatMul"]
    assert node(graph, "Y").inputs[0] is graph.inputs[0]
    scales = graphs.values_of(graph.nodes[0].inputs[1])
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)  # a graph in half holds them
    feeds, stored = random_feeds(graph), graphs.values_of(graph.nodes[0].inputs[0])
    np.testing.assert_array_equal(stored, np.clip(np.rint(values["w"] / scales), -128, 127))
    np.testing.assert_allclose(run(graph, feeds), feeds["x"] @ (stored * scales), rtol=1e-5, atol=1e-5)


def test_a_weight_alone_keeps_the_scales_that_it_is_given() -> None:
    values = weights(w=(32, 16))
    graph = to_graph(model(("MatMul", "x w", "y"), weights=values, opset=21, **MLP))
    given = np.linspace(0.03, 0.04, 16).astype(np.float32)
    InsertQDQ(Plan(axes={"Y": 1}), scales={"Y": given})(graph)
    np.testing.assert_array_equal(graphs.values_of(graph.nodes[0].inputs[1]), given)


def test_consumers_of_one_activation_share_one_pair_and_float_consumers_read_the_float() -> None:
    proto = model(
        ("MatMul", "x w1", "a"),
        ("MatMul", "x w2", "b"),
        ("Add", "a x", "c"),
        ("Add", "b c", "y"),
        inputs={"x": (6, 32)},
        weights=weights(w1=(32, 32), w2=(32, 32)),
        opset=21,
    )
    graph, report = insert(proto)
    assert [one.op for one in graph.nodes].count("QuantizeLinear") == 1
    assert node(graph, "A").inputs[0] is node(graph, "B").inputs[0]
    assert node(graph, "C").inputs[1] is graph.inputs[0]
    assert report.changed == 2


def test_a_chain_in_front_of_the_weight_reads_the_dequantized_one() -> None:
    values = weights(w=(16, 32))
    proto = model(("Transpose", "w", "t", {"perm": [1, 0]}), ("MatMul", "x t", "y"), weights=values, opset=21, **MLP)
    graph, _ = insert(proto)
    dq = graphs.producer(node(graph, "T").inputs[0])
    assert dq is not None
    assert (dq.op, dq.attrs["axis"]) == ("DequantizeLinear", 0)
    feeds = random_feeds(graph)
    expected = fake(feeds["x"]) @ fake_weight(values["w"], 0).T
    np.testing.assert_allclose(run(graph, feeds), expected, rtol=1e-5, atol=1e-5)


def test_what_the_plan_does_not_name_is_left_alone() -> None:
    graph = to_graph(model(("MatMul", "x w", "y"), weights=weights(w=(32, 16)), opset=21, **MLP))
    before = whole(graph).SerializeToString(deterministic=True)
    plan = plan_of(graph).without("Y").deciding(Decision("Y", "MatMul", DType.FP16, "kept", ""))
    for one in (plan, Plan()):
        assert InsertQDQ(one)(graph).notes == ()
        assert whole(graph).SerializeToString(deterministic=True) == before


def test_a_node_whose_weight_went_is_skipped_with_a_reason() -> None:
    graph = to_graph(model(("MatMul", "x z", "y"), inputs={"x": (6, 32), "z": (32, 16)}, opset=21))
    report = InsertQDQ(Plan({"Y": Decision("Y", "MatMul", DType.INT8, "linear", "")}))(graph)
    (note,) = report.notes
    assert isinstance(note, Skipped)
    assert "not a constant" in note.text


def test_a_second_run_changes_nothing() -> None:
    graph = to_graph(model(("MatMul", "x w", "y"), weights=weights(w=(32, 16)), opset=21, **MLP))
    one = InsertQDQ(plan_of(graph))
    one(graph)
    before = whole(graph).SerializeToString(deterministic=True)
    assert one(graph).changed == 0
    assert whole(graph).SerializeToString(deterministic=True) == before


CONV: dict[str, Any] = {"inputs": {"x": (2, 4, 8, 8)}}


@pytest.mark.parametrize(
    ("nodes", "values", "added"),
    [
        ([("Conv", "x w", "y")], {}, 0),
        ([("Conv", "x w b", "y")], {"b": (8,)}, 0),
        ([("Conv", "x w", "a"), ("Relu", "a", "y")], {}, 0),
    ],
)
def test_a_correction_is_added_to_each_channel_of_the_output(nodes: Any, values: Any, added: int) -> None:
    proto = model(*nodes, weights=weights(w=(8, 4, 3, 3), **values), opset=21, **CONV)
    shift = np.linspace(-1, 1, 8).astype(np.float32)
    first = nodes[0][2].upper()
    plain, _ = insert(proto)
    corrected, _ = insert(proto, corrections={first: shift})
    assert [one.op for one in corrected.nodes].count("Add") == added
    feeds = random_feeds(plain)
    tensor = nodes[0][2]
    before = Session(plain, outputs=[tensor], optimize=False).run(feeds)[tensor]
    after = Session(corrected, outputs=[tensor], optimize=False).run(feeds)[tensor]
    np.testing.assert_allclose(after - before, np.broadcast_to(shift.reshape(1, 8, 1, 1), before.shape), atol=1e-5)


def test_a_correction_of_zero_adds_no_bias() -> None:
    proto = model(("Conv", "x w", "y"), weights=weights(w=(8, 4, 3, 3)), opset=21, **CONV)
    graph, _ = insert(proto, corrections={"Y": np.zeros(8, np.float32)})
    assert len(node(graph, "Y").inputs) == 2


def test_names_that_are_taken_are_not_used_twice() -> None:
    proto = model(
        ("Relu", "x", "x/quantized"), ("MatMul", "x w", "a"), ("Add", "a x/quantized", "y"),
        inputs={"x": (6, 32)}, weights=weights(w=(32, 32)), opset=21,
    )  # fmt: skip
    graph, _ = insert(proto)
    names = [t.name for t in graphs.tensors(graph)]
    assert len(names) == len(set(names))
