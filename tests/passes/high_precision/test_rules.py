"""Reductions, powers, integers and constants: what FP16 would overflow, lose or round, one test a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, random_feeds, to_graph
from tests.kit.typed import F32, by_name, ops, stays, typed, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


ONES = {"x": np.ones((2, 4), np.float32)}


# --- Reductions -------------------------------------------------------------------------------------------------------


def pooled(side: int | str, value: float, op: str = "GlobalAveragePool", **attrs: Any) -> tuple[Any, Feeds]:
    spec: Spec = (op, "x", "p", attrs)
    proto = model(spec, ("Conv", "p w", "y"), inputs={"x": (1, 4, side, side)}, weights={"w": weight(4, 4, 1, 1)})
    size = side if isinstance(side, int) else 4
    return proto, {"x": np.full((1, 4, size, size), value, np.float32)}


def test_an_average_whose_sum_fits_runs_in_half() -> None:
    assert typed(*pooled(7, 100))[1]["P"].precision is DType.FP16


@pytest.mark.parametrize(("side", "value"), [(7, 1400.0), (128, 1e-2), ("n", 40.0)])
def test_an_average_whose_sum_overflows_or_loses_its_last_terms_stays_fp32(side: int | str, value: float) -> None:
    assert "adds up" in stays(pooled(side, value)[0], "P", "accumulate", pooled(side, value)[1]).why


def test_an_average_over_an_open_size_of_small_values_runs_in_half() -> None:
    assert typed(*pooled("n", 3.0))[1]["P"].precision is DType.FP16


def test_a_window_counts_by_its_own_size() -> None:
    proto, feeds = pooled(64, 900, "AveragePool", kernel_shape=[3, 3])
    assert typed(proto, feeds, tolerance=1e-2)[1]["P"].precision is DType.FP16


def test_a_sum_written_as_einsum_is_a_sum() -> None:
    proto = model(("Einsum", "x", "s", {"equation": "ij->i"}), ("Relu", "s", "y"))
    stays(proto, "S", "accumulate")


@pytest.mark.parametrize("op", ["Sinh", "Cosh", "Tan"])
def test_functions_that_grow_like_exp_stay_fp32(op: str) -> None:
    stays(model(("MatMul", "x w", "m"), (op, "m", "y"), weights={"w": weight(4, 4)}), "Y", "accumulate")


def test_softmax_and_layer_normalization_run_in_half() -> None:
    proto = model(
        ("LayerNormalization", "x g", "n", {"epsilon": 1e-12}), ("Softmax", "n", "y"), weights={"g": weight(4) + 1}
    )
    assert {one.precision for one in typed(proto)[1].values()} == {DType.FP16}


# --- Powers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [("Pow", "x two", "p"), ("Mul", "x x", "p")])
def test_a_square_needs_the_margin_of_its_root_twice(spec: Spec) -> None:
    proto = model(spec, ("MatMul", "p w", "y"), weights={"two": np.float32(2), "w": weight(4, 4)})
    for value, half in ((30.0, True), (60.0, False)):  # 60 squared fits 8 times over, but not the square of 8 times 60
        feeds = {"x": np.full((2, 4), value, np.float32)}
        if half:
            assert typed(proto, feeds)[1]["P"].precision is DType.FP16
        else:
            assert stays(proto, "P", "fp16-range", feeds).figures["absmax"] == value**2


def test_the_squares_of_a_written_out_rms_norm_never_pass_through_half() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Pow", "m two", "p"),
        ("ReduceMean", "p", "mean", {"axes": [-1]}),
        ("Add", "mean eps", "e"),
        ("Sqrt", "e", "r"),
        ("Div", "m r", "n"),
        ("MatMul", "n w", "y"),
        weights={"w": np.eye(4, dtype=np.float32), "two": np.float32(2), "eps": np.float32(1e-6)},
    )
    feeds = {"x": np.array([[300, -200, 5, 1], [1, 2, 3, 4]], np.float32)}  # 300 squared is 90000
    graph, decisions = typed(proto, feeds)
    assert {decisions[name].precision for name in ("P", "MEAN", "E", "R")} == {DType.FP32}
    # Eight times the values that were seen are still right.
    large = {"x": 8 * feeds["x"]}
    want = Session(to_graph(proto), optimize=False).run(large)["y"]
    np.testing.assert_allclose(Session(graph, optimize=False).run(large)["y"], want, atol=2e-3)


# --- Constants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [("Clip", "x eps", "g"), ("Max", "x eps", "g")])
def test_a_guard_that_half_turns_into_zero_stays_fp32(spec: Spec) -> None:
    proto = model(spec, ("Div", "x g", "y"), weights={"eps": np.float32(1e-12)})
    stays(proto, "G", "fp16-small", {"x": np.abs(weight(2, 4)) + 1})


def test_a_fill_that_is_no_mask_of_a_softmax_stays_fp32() -> None:
    proto = model(
        ("Cast", "b", "c", {"to": 9}),
        ("Where", "c x low", "f"),
        ("ReduceMax", "f", "y", {"axes": [-1]}),
        inputs={"x": (2, 4), "b": (np.int64, (2, 4))},
        weights={"low": np.float32(-1e9)},
    )
    stays(proto, "F", "fp16-range")


def test_a_padding_value_beyond_half_stays_fp32() -> None:
    proto = model(("Pad", "x pads low", "p"), ("MaxPool", "p", "y", {"kernel_shape": [2, 2]}),
                  inputs={"x": (1, 1, 4, 4)},
                  weights={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "low": np.float32(-1e30)})  # fmt: skip
    stays(proto, "P", "fp16-range")


@pytest.mark.parametrize("value", [1e-12, 1e6])
def test_a_constant_of_shape_that_does_not_fit_keeps_its_reader_fp32(value: float) -> None:
    fill = {"value": to_tensor(value)}
    proto = model(
        ("Shape", "x", "s"),
        ("ConstantOfShape", "s", "c", fill),
        ("Mul", "x c", "m"),
        ("Mul", "m back", "y"),
        weights={"back": np.float32(1.0)},
    )
    graph = to_graph(proto)
    feeds = {"x": np.full((2, 4), 3.0, np.float32)}
    HighPrecision(ranges=ranges.measure(graph, [feeds]))(graph)
    found = Session(graph, optimize=False).run(feeds)["y"]
    np.testing.assert_allclose(found, np.full((2, 4), 3.0 * value), rtol=1e-3)


def to_tensor(value: float) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(np.array([value], np.float32))


def test_an_equality_with_a_number_that_half_does_not_have_stays_fp32() -> None:
    proto = model(
        ("MatMul", "x w", "m"), ("Equal", "m pad", "e"), ("Cast", "e", "y", {"to": 1}),
        weights={"w": weight(4, 4), "pad": np.float32(0.1)},
    )  # fmt: skip
    stays(proto, "E", "compare")


def test_an_equality_with_a_number_that_half_has_runs_in_half() -> None:
    proto = model(
        ("MatMul", "x w", "m"), ("Equal", "m pad", "e"), ("Cast", "e", "y", {"to": 1}),
        weights={"w": weight(4, 4), "pad": np.float32(-1)},
    )  # fmt: skip
    assert typed(proto)[1]["E"].precision is DType.FP16


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [("EyeLike", "x", {"dtype": 1}), ("RandomUniformLike", "x", {"dtype": 1, "seed": 1.0})],
)
def test_an_operator_that_states_its_own_type_keeps_it(op: str, inputs: str, attrs: dict[str, Any]) -> None:
    proto = model((op, inputs, "i", attrs), ("MatMul", "i w", "y"), weights={"w": weight(4, 4)})
    assert "states its type" in stays(proto, "I", "no-kernel").why


# --- Integers in floats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counting",
    [
        (("Range", "zero n one", "r"), ("Unsqueeze", "r axes", "p")),
        (("Cast", "ids", "r", {"to": 1}), ("CumSum", "r axis", "p")),
        (("Cast", "ids", "r", {"to": 1}), ("Add", "r n", "p")),
    ],
    ids=["range", "cumsum", "offset"],
)
def test_positions_beyond_what_half_counts_to_stay_fp32(counting: tuple[Spec, ...]) -> None:
    proto = model(
        *counting,
        ("Mul", "p w", "q"),
        ("Add", "q x", "y"),
        inputs={"x": (1, 4000), "ids": (np.int64, (1, 4000))},
        weights={
            "zero": F32.type(0), "n": F32.type(4000), "one": F32.type(1), "axes": np.array([0]), "axis": np.array(1),
            "w": weight(1, 4000) * 1e-3,
        },
    )  # fmt: skip
    feeds: Feeds = {"x": np.zeros((1, 4000), np.float32), "ids": np.ones((1, 4000), np.int64)}
    stays(proto, "Q", "integers", feeds)


def test_what_becomes_a_large_integer_stays_fp32() -> None:
    proto = model(("Mul", "x k", "m"), ("Round", "m", "r"), ("Cast", "r", "y", {"to": 7}),
                  weights={"k": np.float32(4096)})  # fmt: skip
    graph = to_graph(proto)
    feeds = {"x": np.array([[0.5003, 0.75, 1, 0.3], [0.1, 0.9, 0.6001, 0.2]], np.float32)}
    HighPrecision(ranges=ranges.measure(graph, [feeds]))(graph)
    want = np.rint(feeds["x"] * np.float32(4096)).astype(np.int64)
    np.testing.assert_array_equal(Session(graph, optimize=False).run(feeds)["y"], want)


def test_small_counts_run_in_half() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}), ("MatMul", "f w", "y"),
        inputs={"i": (np.int64, (2, 4))}, weights={"w": weight(4, 4)},
    )  # fmt: skip
    graph = to_graph(proto)
    report = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))(graph)
    assert {one.precision for one in report.decisions} == {DType.FP16}
    assert graphs.dtype_of(by_name(graph, "Y").inputs[0]) == np.float16


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


def test_large_integers_as_floats_stay_fp32() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("Mul", "f w", "y"),
        inputs={"i": (np.int64, (1, 4))},
        weights={"w": weight(1, 4)},
    )
    stays(proto, "Y", "integers", {"i": np.array([[1, 2, 3, 2049]])})
