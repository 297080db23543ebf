from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.passes.layout.move_transposes import MoveTransposes
from tests.kit.rewrite import Spec, check, check_untouched, graph_proto, model

NHWC, NCHW = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
IMAGE = {"x": (1, 4, 6, 6)}
RANDOM = np.random.default_rng(3)


def _floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


W = _floats(4, 4, 1, 1)


def _between(*nodes: Spec, last: str = "m", weights: dict[str, Any] | None = None, **how: Any) -> onnx.ModelProto:
    """Conv → Transpose to NHWC → these nodes, from `t` to `last` → Transpose to NCHW → pooling."""
    return model(
        ("Conv", "x w", "c"),
        ("Transpose", "c", "t", NHWC),
        *nodes,
        ("Transpose", last, "u", NCHW),
        ("AveragePool", "u", "y", {"kernel_shape": [1, 1]}),
        inputs=how.pop("inputs", IMAGE),
        weights={"w": W, **(weights or {})},
        **{"opset": 21, **how},
    )


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)


def _factors(*values: float) -> Any:
    return np.array(values, np.float32)


MOVED: dict[str, tuple[Sequence[Spec], dict[str, Any]]] = {
    "clip": ([("Clip", "t lo hi", "m")], {"lo": np.float32(0), "hi": np.float32(0.5)}),
    "leaky": ([("LeakyRelu", "t", "m", {"alpha": 0.2})], {}),
    "prelu": ([("PRelu", "t s", "m")], {"s": _floats(4)}),
    "prelu-per-row": ([("PRelu", "t s", "m")], {"s": _floats(6, 1, 1)}),
    "bias": ([("Add", "t b", "a"), ("Relu", "a", "m")], {"b": _floats(4)}),
    "scalar": ([("Mul", "b t", "m")], {"b": _floats(1)}),
    "pixels": ([("Sub", "b t", "m")], {"b": _floats(6, 6, 4)}),
    "swish": ([("Sigmoid", "t", "s"), ("Mul", "t s", "m")], {}),
    "square": ([("Mul", "t t", "m")], {}),
    "concat": ([("Relu", "t", "r"), ("Concat", "t r k", "m", {"axis": -1})], {"k": _floats(1, 6, 6, 2)}),
    "split": ([("Split", "t n", "a b", {"axis": 3}), ("Mul", "a b", "m")], {"n": _ints(2, 2)}),
    "slice": (
        [("Slice", "t s e a st", "m")],
        {"s": _ints(5, 0), "e": _ints(0, 2), "a": _ints(1, -1), "st": _ints(-2, 1)},
    ),
    "slice-all-axes": ([("Slice", "t s e", "m")], {"s": _ints(0, 1, 2, 1), "e": _ints(9, 9, 4, 3)}),
    "pad": ([("Pad", "t p v", "m")], {"p": _ints(0, 1, 2, 0, 0, 0, 3, 1), "v": np.float32(7)}),
    "pad-axes": ([("Pad", "t p _ a", "m", {"mode": "reflect"})], {"p": _ints(1, 2, 0, 1), "a": _ints(2, 1)}),
    "nearest": ([("Resize", "t _ s", "m", {"mode": "nearest"})], {"s": _factors(1, 2, 3, 1)}),
    "linear": ([("Resize", "t _ s", "m", {"mode": "linear"})], {"s": _factors(1, 2, 3, 1)}),
    "sizes": ([("Resize", "t _ _ s", "m", {"mode": "nearest"})], {"s": _ints(1, 12, 9, 4)}),
    "resize-axes": ([("Resize", "t _ s", "m", {"mode": "nearest", "axes": [1, 2]})], {"s": _factors(2, 1)}),
    "mean": ([("ReduceMean", "t a", "r"), ("Mul", "t r", "m")], {"a": _ints(1, 2)}),
    "softmax": ([("Softmax", "t", "m", {"axis": -1})], {}),
    "tile": ([("Tile", "t n", "m")], {"n": _ints(1, 2, 1, 3)}),
    "gather": ([("Gather", "t i", "m", {"axis": 3})], {"i": _ints(3, 0, 0)}),
    "where": ([("Greater", "t z", "g"), ("Where", "g t z", "m")], {"z": _floats(4)}),
    "quantized": (
        [("QuantizeLinear", "t s z", "q"), ("DequantizeLinear", "q s z", "m")],
        {"s": np.float32(0.1), "z": np.int8(0)},
    ),
    "per-channel": (
        [("QuantizeLinear", "t s z", "q", {"axis": 3}), ("DequantizeLinear", "q s z", "m", {"axis": -1})],
        {"s": _factors(0.1, 0.2, 0.3, 0.05), "z": np.zeros(4, np.int8)},
    ),
    "max-of-three": ([("Neg", "t", "n"), ("Max", "t n k", "m")], {"k": _floats(4)}),
    "cast": ([("Cast", "t", "h", {"to": 10}), ("Cast", "h", "m", {"to": 1})], {}),
    "top": (
        [("TopK", "t k", "v i", {"axis": 3}), ("Cast", "i", "f", {"to": 1}), ("Add", "v f", "m")],
        {"k": _ints(2)},
    ),
    "arg": ([("ArgMax", "t", "i", {"axis": -1}), ("Cast", "i", "f", {"to": 1}), ("Add", "t f", "m")], {}),
}


@pytest.mark.parametrize("name", list(MOVED))
def test_what_computes_the_same_in_another_order_joins_its_convolution(name: str) -> None:
    nodes, weights = MOVED[name]
    graph, _ = check(MoveTransposes(), _between(*nodes, weights=weights))
    assert [one.op for one in graph.nodes if one.op == "Transpose"] == []


def test_constants_get_the_order_of_what_they_meet() -> None:
    nodes = [("Add", "t b", "a"), ("Mul", "a b", "m")]
    graph, _ = check(MoveTransposes(), _between(*nodes, weights={"b": _floats(4)}))
    assert [tuple(one.inputs[1].shape) for one in graph.nodes if one.op in ("Add", "Mul")] == [(1, 4, 1, 1)] * 2


def test_a_shortcut_in_the_other_order_goes_along() -> None:
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Relu", "t", "r"), ("Transpose", "r", "u", NCHW),
        ("Conv", "u w", "d"), ("Transpose", "d", "v", NHWC), ("Add", "v r", "a"), ("Relu", "a", "s"),
        ("Transpose", "s", "n", NCHW), ("Conv", "n w", "y"),
        inputs={"x": ("n", 4, "h", "w")}, weights={"w": W},
    )  # fmt: skip
    check(MoveTransposes(), proto, ops=["Conv", "Relu", "Conv", "Add", "Relu", "Conv"])


def test_an_activation_behind_a_transpose_that_stays_goes_in_front_of_it() -> None:
    nodes = [("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Add", "t b", "a"), ("Clip", "a lo", "y")]
    proto = model(*nodes, inputs=IMAGE, weights={"w": W, "b": _floats(4), "lo": np.float32(0)})
    graph, _ = check(MoveTransposes(), proto, ops=["Conv", "Add", "Clip", "Transpose"])
    assert graph.outputs[0].name == "y"


def test_an_output_that_meets_its_inverse_keeps_its_name() -> None:
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Transpose", "t", "y", NCHW), ("Relu", "c", "z"),
        inputs=IMAGE, outputs=["y", "z"], weights={"w": W},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto, ops=["Conv", "Relu"])
    assert [one.name for one in graph.outputs] == ["y", "z"]


def test_an_input_that_comes_back_as_an_output() -> None:
    proto = model(("Transpose", "x", "t", NHWC), ("Transpose", "t", "y", NCHW), inputs=IMAGE)
    check(MoveTransposes(), proto, ops=["Identity"])


def test_outputs_in_both_orders() -> None:
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Relu", "t", "y"), ("Transpose", "y", "z", NCHW),
        ("Transpose", "y", "z2", NCHW), inputs=IMAGE, outputs=["y", "z", "z2"], weights={"w": W},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto)
    assert [one.name for one in graph.outputs] == ["y", "z", "z2"]
    assert [one.op for one in graph.nodes].count("Transpose") == 1


def test_transposes_in_a_row_become_one() -> None:
    proto = model(("Transpose", "x", "t", NHWC), ("Transpose", "t", "y", NHWC), inputs=IMAGE)
    graph, _ = check(MoveTransposes(), proto, ops=["Transpose"])
    assert graph.nodes[0].attrs["perm"] == [0, 3, 1, 2]


def test_equal_transposes_become_one() -> None:
    proto = model(
        ("Transpose", "x", "a", NHWC), ("Transpose", "x", "b", NHWC), ("MatMul", "a w", "c"), ("MatMul", "b w", "y"),
        inputs=IMAGE, outputs=["c", "y"], weights={"w": _floats(4, 4)},
    )  # fmt: skip
    check(MoveTransposes(), proto, ops=["Transpose", "MatMul", "MatMul"])


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_pooling_over_the_image_reads_either_order(op: str, keep: int) -> None:
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Relu", "t", "r"), (op, "r a", "p", {"keepdims": keep}),
        ("Reshape", "p s", "q"), ("Gemm", "q g", "y"), inputs=IMAGE, opset=18,
        weights={"w": W, "a": _ints(1, 2), "s": _ints(-1, 4), "g": _floats(4, 3)},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto)
    assert "Transpose" not in [one.op for one in graph.nodes]


@pytest.mark.parametrize(
    "tail",
    [
        [("Flatten", "t", "y")],
        [("Reshape", "t s", "y")],
        [("Squeeze", "t a", "y")],
        [("ArgMax", "t", "i", {"axis": 3, "keepdims": 0}), ("Cast", "i", "f", {"to": 1}), ("ReduceSum", "f", "y")],
    ],
)
def test_what_moves_nothing_reads_either_order(tail: list[Spec]) -> None:
    proto = model(
        ("GlobalAveragePool", "x", "g"), ("Transpose", "g", "t", NHWC), *tail,
        inputs=IMAGE, weights={"s": _ints(0, -1), "a": _ints(1, 2)},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto)
    assert "Transpose" not in [one.op for one in graph.nodes]


def test_sizes_that_are_asked_for_are_told_as_they_were() -> None:
    proto = _between(
        ("Shape", "t", "s"),
        ("Mul", "s two", "n"),
        ("Resize", "t _ _ n", "m", {"mode": "nearest"}),
        weights={"two": _ints(1, 2, 2, 1)},
        inputs={"x": ("n", 4, "h", "w")},
    )
    graph, _ = check(MoveTransposes(), proto)
    assert "Transpose" not in [one.op for one in graph.nodes]


def test_what_nothing_is_won_by_stays() -> None:
    nodes = [("Transpose", "x", "t", NHWC), ("Relu", "t", "r"), ("MatMul", "r m", "y")]
    check_untouched(MoveTransposes(), model(*nodes, inputs=IMAGE, weights={"m": _floats(4, 4)}))


def test_an_attention_stays_as_it_is() -> None:
    heads = {"perm": [0, 2, 1, 3]}
    proto = model(
        ("Reshape", "x s", "r"), ("Transpose", "r", "q", heads), ("Transpose", "r", "k", {"perm": [0, 2, 3, 1]}),
        ("Mul", "q d", "e"), ("MatMul", "e k", "a"), ("Softmax", "a", "p"), ("MatMul", "p q", "o"),
        ("Transpose", "o", "t", heads), ("Reshape", "t z", "y"),
        inputs={"x": (2, 5, 8)}, weights={"s": _ints(2, 5, 2, 4), "z": _ints(2, 5, 8), "d": np.float32(0.5)},
    )  # fmt: skip
    check_untouched(MoveTransposes(), proto)


def test_a_layer_norm_between_transposes_stays() -> None:
    proto = _between(("LayerNormalization", "t g", "l"), ("Gelu", "l", "m"), weights={"g": _floats(4)})
    check_untouched(MoveTransposes(), proto)


def test_cubic_samples_stay_in_the_last_two_axes() -> None:
    proto = model(
        ("Transpose", "x", "t", NCHW), ("Resize", "t _ s", "r", {"mode": "cubic"}), ("Transpose", "r", "y", NHWC),
        inputs={"x": (1, 5, 5, 2)}, weights={"s": _factors(1, 1, 2, 2)},
    )  # fmt: skip
    check_untouched(MoveTransposes(), proto)


def test_a_sum_with_its_own_transpose_is_in_two_orders_at_once() -> None:
    swap = {"perm": [1, 0]}
    nodes = [("Transpose", "x", "t", swap), ("Add", "x t", "a"), ("Transpose", "a", "y", swap)]
    check_untouched(MoveTransposes(), model(*nodes, inputs={"x": (4, 4)}))


def test_sequences() -> None:
    swap = {"perm": [0, 2, 1]}
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", swap), ("Mul", "t g", "m"), ("Transpose", "m", "u", swap),
        ("Conv", "u w", "y"), inputs={"x": (1, 4, "t")}, weights={"w": _floats(4, 4, 1), "g": _floats(4)},
    )  # fmt: skip
    check(MoveTransposes(), proto, ops=["Conv", "Mul", "Conv"])


def test_pictures_of_bytes() -> None:
    proto = model(
        ("Transpose", "x", "t", NCHW), ("Cast", "t", "f", {"to": 1}), ("Transpose", "f", "b", NHWC),
        ("Sub", "b m", "s"), ("Transpose", "s", "u", NCHW), ("Conv", "u w", "y"),
        inputs={"x": (np.uint8, (1, "h", "w", 4))}, weights={"w": W, "m": _floats(4)},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto)
    assert [one.op for one in graph.nodes].count("Transpose") == 1


def test_a_body_that_reads_a_tensor_finds_it_in_its_order() -> None:
    def branch(op: str) -> onnx.GraphProto:
        return graph_proto([(op, "r", f"o_{op}")], {}, [f"o_{op}"])

    proto = _between(
        ("Relu", "t", "r"),
        ("If", "flag", "i", {"then_branch": branch("Neg"), "else_branch": branch("Abs")}),
        ("Add", "i r", "m"),
        inputs={**IMAGE, "flag": (np.bool_, (1,))},
    )
    check(MoveTransposes(), proto)


def test_models_of_old_opsets_are_left_alone() -> None:
    proto = model(("Transpose", "x", "t", NHWC), ("Transpose", "t", "y", NCHW), inputs=IMAGE, opset=12)
    check_untouched(MoveTransposes(), proto)


def test_what_a_discrete_step_reads_stays_as_it_is() -> None:
    proto = model(
        ("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Add", "t b", "logits"),
        ("ArgMax", "logits", "y", {"axis": 3}), inputs=IMAGE, weights={"w": W, "b": _floats(4)},
    )  # fmt: skip
    graph, _ = check(MoveTransposes(), proto, ops=["Conv", "Add", "Transpose", "ArgMax"])
    assert graph.nodes[-1].inputs[0].name == "logits"


def test_what_a_sigmoid_at_the_end_reads_stays_as_it_is() -> None:
    nodes = [("Conv", "x w", "c"), ("Transpose", "c", "t", NHWC), ("Sigmoid", "t", "y")]
    check_untouched(MoveTransposes(), model(*nodes, inputs=IMAGE, weights={"w": W}))
