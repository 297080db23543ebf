"""Q/DQ pairs are taken out: what is left is the float model, but for the rounding of weights."""

from __future__ import annotations

import numpy as np
import onnx

from qcompiler.ir.qdq import is_dq, is_q
from qcompiler.passes.quantize.remove_qdq import RemoveQDQ
from tests.kit.rewrite import check, check_untouched, model, to_graph

RNG = np.random.default_rng(4)
STORED = RNG.integers(-127, 128, (4, 8)).astype(np.int8)
PARAMETERS = {"s": np.float32(0.02), "z": np.int8(0), "t": np.float32(0.01), "v": STORED}
PAIR = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"))
WEIGHT = ("DequantizeLinear", "v t z", "w")


def test_a_quantized_product_is_float_again() -> None:
    proto = model(*PAIR, WEIGHT, ("MatMul", "d w", "y"), inputs={"x": (3, 4)}, weights=PARAMETERS, opset=19)
    graph, report = check(RemoveQDQ(), proto, tolerance=0.2)  # what the activation's rounding was worth
    (product,) = graph.nodes
    assert product.inputs[0].name == "x"
    np.testing.assert_array_equal(product.inputs[1].values, STORED * np.float32(0.01))
    assert report.changed == 2


def test_a_pair_that_others_read_too_is_gone_for_all() -> None:
    proto = model(
        *PAIR, ("DequantizeLinear", "q s z", "e"), ("Relu", "d", "a"), ("Neg", "e", "b"), ("Add", "a b", "y"),
        inputs={"x": (3, 4)}, weights=PARAMETERS, opset=19,
    )  # fmt: skip
    graph, _ = check(RemoveQDQ(), proto, tolerance=0.2)
    assert not [node for node in graph.nodes if is_q(node) or is_dq(node)]


def test_another_float_type_behind_the_pair_is_cast_to() -> None:
    half = {"h": np.float16(0.02), "z": np.int8(0), "s": np.float32(0.02)}
    nodes = (
        ("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q h z", "d"),
        ("Cast", "d", "y", {"to": onnx.TensorProto.FLOAT}),
    )  # fmt: skip
    graph, _ = check(RemoveQDQ(), model(*nodes, inputs={"x": (3, 4)}, weights=half, opset=19), tolerance=0.2)
    assert [node.op for node in graph.nodes] == ["Cast", "Cast"]


def test_integers_that_travel_stay() -> None:
    nodes = (PAIR[0], ("Transpose", "q", "r", {"perm": [1, 0]}), ("DequantizeLinear", "r s z", "y"))
    graph = to_graph(model(*nodes, inputs={"x": (3, 4)}, weights=PARAMETERS, opset=19))
    report = RemoveQDQ()(graph)
    assert report.changed == 0
    assert "made by another operator" in report.notes[0].text
    assert [node.op for node in graph.nodes] == [op for op, *_ in nodes]


def test_a_float_model_is_none_of_its_business() -> None:
    check_untouched(RemoveQDQ(), model(("Relu", "x", "y"), inputs={"x": (3, 4)}))
