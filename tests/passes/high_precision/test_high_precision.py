"""Typing in FP16 and BF16: what moves, what stays, and where the Casts stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir import graph as graphs
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, random_feeds, to_graph, whole
from tests.kit.typed import F32, assert_no_cast_behind_a_cast, by_name, operand_types, ops, rng, stays, typed, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


F16 = np.dtype(np.float16)


# --- Casts ------------------------------------------------------------------------------------------------------------


def test_a_chain_runs_in_half_between_two_casts_and_keeps_its_interface() -> None:
    proto = model(("MatMul", "x w", "m"), ("Relu", "m", "y"), weights={"w": weight(4, 8)})
    graph, decisions = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "Cast"]
    assert graphs.dtype_of(graph.inputs[0]) == F32
    assert (graph.outputs[0].name, graphs.dtype_of(graph.outputs[0])) == ("y", F32)
    assert {one.precision for one in decisions.values()} == {DType.FP16}
    assert not [t.name for t in graphs.tensors(graph) if graphs.is_constant(t) and graphs.dtype_of(t) == F32]


def test_one_cast_serves_all_consumers_of_a_tensor() -> None:
    proto = model(
        ("MatMul", "x a", "p"),
        ("MatMul", "x b", "q"),
        ("Add", "p q", "y"),
        weights={"a": weight(4, 4), "b": weight(4, 4)},
    )
    graph, _ = typed(proto)
    assert ops(graph).count("Cast") == 2
    assert_no_cast_behind_a_cast(graph)


def test_a_constant_read_in_both_types_has_two_copies_and_no_cast() -> None:
    proto = model(("Mul", "x c", "m"), ("Exp", "m", "e"), ("Pow", "e c", "y"), weights={"c": weight(1, 4) + 1})
    graph, _ = typed(proto, {"x": np.ones((2, 4), np.float32)})
    copies = [graphs.dtype_of(t) for t in graphs.tensors(graph) if graphs.is_constant(t)]
    assert sorted(map(str, copies)) == ["float16", "float32"]
    assert_no_cast_behind_a_cast(graph)


def test_a_cast_of_integers_goes_straight_to_half() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("MatMul", "f w", "y"),
        inputs={"i": (np.int64, (2, 80))},
        weights={"w": weight(80, 80)},
    )
    graph, _ = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Cast"]
    assert by_name(graph, "F").attrs["to"] == onnx.TensorProto.FLOAT16


def test_a_cast_of_integers_read_in_both_types_is_doubled_not_chained() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("MatMul", "f w", "m"),
        ("Exp", "f", "e"),
        ("Add", "m e", "y"),
        inputs={"i": (np.int64, (2, 80))},
        weights={"w": weight(80, 80)},
    )
    graph, _ = typed(proto)
    assert sorted(node.attrs["to"] for node in graph.nodes if node.op == "Cast" and node.inputs[0].name == "i") == [
        1,
        10,
    ]
    assert_no_cast_behind_a_cast(graph)


def test_a_cast_to_integers_reads_half_directly() -> None:
    proto = model(
        ("MatMul", "x w", "m"), ("Relu", "m", "r"), ("Cast", "r", "y", {"to": 7}), weights={"w": np.eye(4, dtype=F32)}
    )
    graph, _ = typed(proto, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}, tolerance=0)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "Cast"]


def test_casts_to_half_and_back_that_a_model_brings_along_disappear() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Cast", "m", "h", {"to": 10}),
        ("Relu", "h", "r"),
        ("Cast", "r", "f", {"to": 1}),
        ("MatMul", "f w", "y"),
        weights={"w": weight(4, 4)},
    )
    graph, _ = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]


def test_a_half_tensor_that_is_an_output_keeps_its_fp32_name() -> None:
    proto = model(("MatMul", "x w", "m"), ("Relu", "m", "y"), outputs=("m", "y"), weights={"w": weight(4, 4)})
    graph, _ = typed(proto)
    assert [(t.name, graphs.dtype_of(t)) for t in graph.outputs] == [("m", F32), ("y", F32)]
    assert by_name(graph, "Y").inputs[0].name != "m"


def test_fp32_changes_nothing() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    assert HighPrecision(DType.FP32)(graph).notes == ()


def test_resize_keeps_its_scales_in_fp32() -> None:
    proto = model(
        ("Relu", "x", "r"),
        ("Resize", "r _ s", "y", {"mode": "nearest"}),
        inputs={"x": (1, 2, 4, 4)},
        weights={"s": np.array([1, 1, 2, 2], np.float32)},
    )
    graph, decisions = typed(proto)
    assert decisions["Y"].precision is DType.FP16
    assert graphs.dtype_of(by_name(graph, "Y").inputs[2]) == F32


def test_text_form_names_the_type_only() -> None:
    assert str(HighPrecision(DType.BF16, Ranges({"x": Range(0, 1)}))) == "high-precision{dtype=bf16}"


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_an_activation_near_the_end_of_half_keeps_its_node_in_fp32() -> None:
    proto = model(
        ("Mul", "x big", "m"), ("Mul", "m small", "y"), weights={"big": np.float32(9e3), "small": np.float32(1e-3)}
    )
    found = stays(proto, "M", "fp16-range", {"x": np.ones((2, 4), np.float32)})
    assert found.figures["absmax"] == pytest.approx(9e3)


def test_a_constant_too_large_for_half_keeps_its_node_in_fp32() -> None:
    proto = model(
        ("Div", "x big", "d"), ("Mul", "d many", "y"), weights={"big": np.float32(1e6), "many": np.float32(1e4)}
    )
    assert "1e+06" in stays(proto, "D", "fp16-range", {"x": np.full((2, 4), 8e3, np.float32)}).why


def test_bounds_of_clip_beyond_half_saturate_instead() -> None:
    proto = model(("Clip", "x lo hi", "y"), weights={"lo": np.float32(0), "hi": np.float32(3.4e38)})
    graph, decisions = typed(proto)
    assert decisions["Y"].precision is DType.FP16
    assert float(graphs.values_of(by_name(graph, "Y").inputs[2])) == 65504


def test_an_epsilon_that_half_turns_into_zero_keeps_its_node_in_fp32() -> None:
    proto = model(("Add", "x eps", "a"), ("Mul", "a x", "y"), weights={"eps": np.float32(1e-12)})
    assert stays(proto, "A", "fp16-small").figures["relative"] == 1


def test_a_bias_with_tiny_values_far_below_the_sum_does_not_matter() -> None:
    proto = model(
        ("Conv", "x w b", "y"),
        inputs={"x": (1, 4, 5, 5)},
        weights={"w": weight(4, 4, 3, 3), "b": np.full(4, 1e-9, np.float32)},
    )
    _, decisions = typed(proto)
    assert decisions["Y"].precision is DType.FP16


def test_a_tensor_that_vanishes_in_half_keeps_its_node_in_fp32() -> None:
    proto = model(
        ("Mul", "x tiny", "m"), ("Mul", "m large", "y"), weights={"tiny": np.float32(1e-5), "large": np.float32(1e4)}
    )
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert stays(proto, "M", "fp16-small", feeds).precision is DType.FP32


def test_what_is_divided_by_must_stay_clear_of_zero() -> None:
    proto = model(("Mul", "x x", "s"), ("Div", "x s", "y"))
    stays(proto, "S", "fp16-small", {"x": np.geomspace(3e-3, 1, 8, dtype=np.float32).reshape(2, 4)})


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceL2", "CumSum"])
def test_written_out_sums_stay_fp32(op: str) -> None:
    attrs = {} if op == "CumSum" else {"keepdims": 1}
    spec: Spec = (op, "x axis", "s", attrs) if op in ("CumSum", "ReduceSum") else (op, "x", "s", attrs)
    proto = model(
        spec, ("Add", "s x", "y"), weights={"axis": np.array(1)} if op == "CumSum" else {"axis": np.array([1])}
    )
    stays(proto, "S", "accumulate")


def test_a_square_in_range_is_a_product_and_a_root_is_not() -> None:
    proto = model(("Pow", "x two", "p"), ("Relu", "p", "y"), weights={"two": np.float32(2)})
    assert typed(proto)[1]["P"].precision is DType.FP16
    stays(model(("Abs", "x", "a"), ("Pow", "a half", "y"), weights={"half": np.float32(0.3)}), "Y", "accumulate")


def test_operators_without_a_half_form_stay_fp32_by_their_schema() -> None:
    proto = model(
        ("Range", "a b d", "r"), ("Add", "r x", "y"), weights={"a": F32.type(0), "b": F32.type(4), "d": F32.type(1)}
    )
    assert "no fp16 form" in stays(proto, "R", "no-kernel").why


def test_recurrent_layers_and_unknown_operators_stay_fp32() -> None:
    proto = model(
        ("GRU", "x w r", "y h", {"hidden_size": 3}),
        inputs={"x": (5, 2, 4)},
        outputs=("y",),
        weights={"w": weight(1, 9, 4), "r": weight(1, 9, 3)},
    )
    stays(proto, "Y", "recurrent")
    graph = to_graph(model(("Relu", "x", "r"), ("Odd", "r", "y", {}, "my.domain"), domains=("my.domain",)))
    report = HighPrecision(ranges=Ranges({"x": Range(0, 1), "r": Range(0, 1), "y": Range(0, 1)}))(graph)
    assert {one.node: one.rule for one in report.decisions}["Y"] == "custom"


def test_an_unobserved_tensor_keeps_its_nodes_in_fp32() -> None:
    graph = to_graph(model(("MatMul", "x w", "m"), ("Relu", "m", "y"), weights={"w": weight(4, 4)}))
    report = HighPrecision(ranges=Ranges({"x": Range(-1, 1), "y": Range(0, 1)}))(graph)
    assert [(one.node, one.rule) for one in report.decisions] == [("M", "unobserved"), ("Y", "unobserved")]
    assert ops(graph) == ["MatMul", "Relu"]


def test_nodes_can_be_kept_by_name() -> None:
    proto = model(("MatMul", "x w", "m"), ("MatMul", "m w", "y"), weights={"w": weight(4, 4)})
    stays(proto, "M", "kept", keep=("M",))


def test_rotary_angles_are_computed_in_fp32_from_the_position_on() -> None:
    proto = model(
        ("Cast", "p", "f", {"to": 1}),
        ("Mul", "f freq", "angle"),
        ("Cos", "angle", "c"),
        ("Sin", "angle", "s"),
        ("Mul", "x c", "xc"),
        ("Mul", "x s", "xs"),
        ("Add", "xc xs", "y"),
        inputs={"x": (6, 4), "p": (np.int64, (6, 1))},
        weights={"freq": np.array([1, 0.1, 0.01, 0.001], np.float32)},
    )
    feeds: Feeds = {"x": rng().standard_normal((6, 4)).astype(np.float32), "p": np.arange(1500, 1506).reshape(6, 1)}
    graph, decisions = typed(proto, feeds)
    assert {name: decisions[name].precision for name in ("ANGLE", "C", "S", "XC", "Y")} == {
        "ANGLE": DType.FP32, "C": DType.FP32, "S": DType.FP32, "XC": DType.FP16, "Y": DType.FP16,
    }  # fmt: skip
    assert decisions["ANGLE"].rule == "angle"
    assert by_name(graph, "F").attrs["to"] == onnx.TensorProto.FLOAT


def test_sizes_computed_in_floats_stay_exact() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Cast", "s", "f", {"to": 1}),
        ("Mul", "f one", "g"),
        ("Floor", "g", "h"),
        ("Cast", "h", "i", {"to": 7}),
        ("Reshape", "x i", "y"),
        weights={"one": np.array([0.5, 2], np.float32)},
        inputs={"x": (2, 2049)},
    )
    graph = to_graph(proto)
    report = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))(graph)
    rules = {one.node: one.rule for one in report.decisions}
    assert rules["G"] in ("index", "integers")
    assert rules["H"] in ("index", "integers")
    assert all(node.attrs["to"] != onnx.TensorProto.FLOAT16 for node in graph.nodes if node.name in ("F", "I"))


def test_large_integers_as_floats_stay_fp32() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("Mul", "f w", "y"),
        inputs={"i": (np.int64, (1, 4))},
        weights={"w": weight(1, 4)},
    )
    stays(proto, "Y", "integers", {"i": np.array([[1, 2, 3, 2049]])})


def test_a_written_out_normalisation_is_one_island() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("ReduceMean", "m", "mean", {"axes": [-1]}),
        ("Sub", "m mean", "d"),
        ("Pow", "d two", "p"),
        ("ReduceMean", "p", "var", {"axes": [-1]}),
        ("Add", "var eps", "v"),
        ("Sqrt", "v", "s"),
        ("Div", "d s", "n"),
        ("Mul", "n gamma", "g"),
        ("MatMul", "g w", "y"),
        weights={"w": weight(4, 4), "two": F32.type(2), "eps": F32.type(1e-12), "gamma": weight(4)},
    )
    graph, decisions = typed(proto)
    half = {name for name, one in decisions.items() if one.precision is DType.FP16}
    assert half == {"M", "G", "Y"}
    assert ops(graph).count("Cast") == 4  # in, behind the first MatMul, behind the Div, out
    assert_no_cast_behind_a_cast(graph)


# --- Q/DQ -------------------------------------------------------------------------------------------------------------

_SCALES = {
    "s": np.float32(0.03),
    "z": np.int8(0),
    "w8": rng().integers(-127, 128, (16, 32)).astype(np.int8),
    "ws": np.linspace(0.001, 0.003, 32).astype(np.float32),
    "wz": np.zeros(32, np.int8),
}
_QDQ: tuple[Spec, ...] = (
    ("Relu", "x", "r"),
    ("QuantizeLinear", "r s z", "q"),
    ("DequantizeLinear", "q s z", "d"),
    ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
    ("MatMul", "d w", "m"),
    ("Relu", "m", "y"),
)


def quantized(opset: int, *more: Spec, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    proto = model(*_QDQ, *more, inputs={"x": ("n", 16)}, outputs=outputs, weights=_SCALES, opset=opset)
    proto.ir_version = 11
    return proto


def test_dequantize_writes_half_itself_and_scales_stay_fp32() -> None:
    graph, _ = typed(quantized(23))
    assert ops(graph) == [
        "Cast",
        "Relu",
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "MatMul",
        "Relu",
        "Cast",
    ]
    for node in graph.nodes:
        if "quantize" in node.op.lower():
            assert graphs.dtype_of(node.inputs[1]) == F32
    assert graphs.is_op(graphs.producer(by_name(graph, "M").inputs[0]), "DequantizeLinear")
    assert graphs.dtype_of(by_name(graph, "M").inputs[0]) == F16


def test_without_output_dtype_a_cast_follows_dequantize() -> None:
    graph, _ = typed(quantized(21), typed_dequantize=False)
    assert ops(graph).count("Cast") == 5
    assert graphs.is_op(graphs.producer(by_name(graph, "M").inputs[1]), "Cast")
    assert all("output_dtype" not in node.attrs for node in graph.nodes)


def test_a_dequantized_tensor_read_in_both_types_has_one_cast() -> None:
    graph, _ = typed(quantized(23, ("ReduceMean", "d", "mean"), outputs=("y", "mean")))
    readers = {node.op for node, _ in graphs.consumers(by_name(graph, "D").outputs[0])}
    assert readers == {"MatMul", "Cast"}


def test_quantize_behind_an_fp32_node_needs_no_cast() -> None:
    proto = model(
        ("Exp", "x", "e"),
        ("Unsqueeze", "e axes", "u"),
        ("QuantizeLinear", "u s z", "q"),
        ("DequantizeLinear", "q s z", "y"),
        weights={"s": F32.type(0.1), "z": np.int8(0), "axes": np.array([0])},
        opset=23,
    )
    proto.ir_version = 11
    graph = to_graph(proto)
    report = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))(graph)
    assert not report.changed
    assert "Cast" not in ops(graph)


# --- BF16 -------------------------------------------------------------------------------------------------------------


def test_bf16_needs_no_ranges_and_passes_the_checker() -> None:
    graph = to_graph(quantized(23))
    report = HighPrecision(DType.BF16)(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    assert {one.precision for one in report.decisions} == {DType.BF16}
    assert by_name(graph, "D").attrs["output_dtype"] == onnx.TensorProto.BFLOAT16


def test_bf16_leaves_what_has_no_bf16_form() -> None:
    proto = model(("Relu", "x", "r"), ("Einsum", "r w", "y", {"equation": "ij,jk->ik"}), weights={"w": weight(4, 4)})
    graph = to_graph(proto)
    report = HighPrecision(DType.BF16)(graph)
    assert {one.node: one.rule for one in report.decisions}["Y"] == "no-kernel"


# --- The real compiler ------------------------------------------------------------------------------------------------


def test_tensorrt_rtx_keeps_int8_products_and_float_scales(tmp_path: Path) -> None:
    proto = quantized(23)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    graph, _ = typed(proto)
    assert operand_types(graph, tmp_path)["M"][:2] == ("int8", "int8")


@pytest.mark.parametrize("keep", [(), ("T",)])
def test_no_cast_stands_in_front_of_a_recurrent_layer_which_tensorrt_rtx_could_not_build(
    keep: tuple[str, ...], tmp_path: Path
) -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Relu", "m", "r"),
        ("Transpose", "r", "t", {"perm": [1, 0, 2]}),
        ("GRU", "t gw gr", "g", {"hidden_size": 16}),
        ("Squeeze", "g one", "s"),
        ("MatMul", "s w", "y"),
        inputs={"x": (1, 5, 16)},
        weights={"w": weight(16, 16), "gw": weight(1, 48, 16), "gr": weight(1, 48, 16), "one": np.array([1])},
    )
    graph, decisions = typed(proto, keep=keep)
    assert {name for name, one in decisions.items() if one.precision is DType.FP16} == {"M", "Y"}
    assert decisions["R"].rule == "recurrent"
    operand_types(graph, tmp_path)


# --- Generated graphs -------------------------------------------------------------------------------------------------

_UNARY = ("Relu", "Sigmoid", "Tanh", "Exp", "Identity", "Neg", "Abs", "Softmax", "Erf")
_BINARY = ("Add", "Mul", "Sub", "Max")


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    nodes: list[Spec] = []
    names = ["x"]
    for i in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from((*_UNARY, *_BINARY, "MatMul", "CumSum", "Cast")))
        reads = draw(st.sampled_from(names))
        if op in _BINARY:
            reads += " " + draw(st.sampled_from([*names, "c"]))
        nodes.append(
            (op, reads + {"MatMul": " w", "CumSum": " axis"}.get(op, ""), f"t{i}", {"to": 1} if op == "Cast" else {})
        )
        names.append(f"t{i}")
    outputs = tuple(dict.fromkeys(draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=3))))
    used = {name for spec in nodes for name in spec[1].split()}
    held = {"w": weight(4, 4), "c": weight(4) + 1, "axis": np.array(1)}
    return model(*nodes, outputs=outputs, weights={name: held[name] for name in held if name in used})


@settings(max_examples=40)
@given(chains())
def test_any_graph_stays_legal_and_close_and_settles(proto: onnx.ModelProto) -> None:
    graph = to_graph(proto)
    feeds = random_feeds(graph)
    before = Session(to_graph(proto), optimize=False).run(feeds)
    pass_ = HighPrecision(ranges=ranges.measure(graph, [feeds]))
    pass_(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    for name, value in Session(graph, optimize=False).run(feeds).items():
        np.testing.assert_allclose(value, before[name], atol=2e-2 * max(1.0, float(np.abs(before[name]).max())))
    written = whole(graph).SerializeToString(deterministic=True)
    pass_(graph)
    assert whole(graph).SerializeToString(deterministic=True) == written
