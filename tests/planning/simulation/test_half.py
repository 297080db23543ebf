"""The float graph with a switch in front of every node that may compute in half."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.planning.simulation.half import HalfSimulator
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.target import DType
from qcompiler.verification import emulation
from tests.kit.rewrite import graph_proto, model, random_feeds, to_graph
from tests.kit.typed import weight


def held(proto: onnx.ModelProto) -> models.Model:
    return models.Model(to_graph(proto), {}, None, 10)


def network() -> onnx.ModelProto:
    return model(
        ("MatMul", "x w", "a"),
        ("Add", "a b", "c"),
        ("Transpose", "c", "t", {"perm": [1, 0]}),
        ("Split", "t", "d e", {"axis": 0, "num_outputs": 2}),
        ("Mul", "d e", "m"),
        ("ReduceSum", "m axes", "r", {"keepdims": 0}),
        ("Tanh", "r", "y"),
        inputs={"x": ("n", 32)},
        weights={"w": weight(32, 64), "b": weight(64), "axes": np.array([0])},
        opset=18,
    )


def half(x: Any) -> Any:
    return x.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_all_together_give_what_the_typed_graph_gives(dtype: DType) -> None:
    loaded = held(network())
    feeds = random_feeds(loaded.graph)
    typing = HighPrecision(dtype, ranges.measure(loaded, [feeds]))
    simulator = HalfSimulator(loaded, typing)
    assert {"A", "C", "Y"} <= set(simulator.units)
    assert {"T", "R"}.isdisjoint(simulator.units)  # moves values, and stays FP32
    typed = models.copy(loaded)
    typing(typed.graph)
    expected = Session(emulation.runnable(typed, half=True), optimize=False).run(feeds)["y"]
    found = simulator.run(feeds, simulator.units)["y"]
    np.testing.assert_array_equal(found, expected)
    plain = simulator.run(feeds, ())["y"]
    np.testing.assert_array_equal(plain, Session(loaded, optimize=False).run(feeds)["y"])
    assert np.abs(found - plain).max() > 0


def test_one_alone_rounds_what_it_reads_and_writes() -> None:
    proto = model(("MatMul", "x w", "a"), ("Tanh", "a", "y"), inputs={"x": (4, 32)}, weights={"w": weight(32, 16)})
    loaded = held(proto)
    feeds = random_feeds(loaded.graph)
    simulator = HalfSimulator(loaded, HighPrecision(DType.FP16, ranges.measure(loaded, [feeds])))
    product = half(half(feeds["x"]) @ half(weight(32, 16)))
    np.testing.assert_allclose(simulator.run(feeds, ["A"])["y"], np.tanh(product), rtol=1e-6, atol=1e-6)
    whole = half(np.tanh(half(feeds["x"] @ weight(32, 16))))
    np.testing.assert_allclose(simulator.run(feeds, ["Y"])["y"], whole, rtol=1e-6, atol=1e-3)


def test_nodes_of_a_branch_have_switches_and_masks_are_clamped() -> None:
    then = graph_proto([("Mul", "x two", "inside")], {}, ["inside"])
    other = graph_proto([("Neg", "x", "beside")], {}, ["beside"])
    proto = model(
        ("If", "c", "z", {"then_branch": then, "else_branch": other}),
        ("MatMul", "z w", "s"),
        ("Add", "s mask", "logits"),
        ("Softmax", "logits", "p", {"axis": -1}),
        ("MatMul", "p v", "y"),
        inputs={"x": (4, 32), "c": (np.bool_, ())},
        weights={
            "two": np.float32(2.0003),
            "w": weight(32, 6),
            "v": weight(6, 4),
            "mask": np.triu(np.full((4, 6), -3e38, np.float32), 1),
        },
    )
    loaded = held(proto)
    feeds = {**random_feeds(loaded.graph), "c": np.array(True)}
    simulator = HalfSimulator(loaded, HighPrecision(DType.FP16, ranges.measure(loaded, [feeds])))
    assert {"INSIDE", "LOGITS"} <= set(simulator.units)
    found = simulator.run(feeds, simulator.units)["y"]
    assert np.isfinite(found).all()
    assert np.abs(simulator.run(feeds, ["INSIDE"])["y"] - simulator.run(feeds, [])["y"]).max() > 0


def test_what_a_discrete_output_is_made_of_is_compared() -> None:
    proto = model(
        ("MatMul", "x w", "s"), ("ArgMax", "s", "y", {"axis": -1}), inputs={"x": (4, 32)}, weights={"w": weight(32, 8)}
    )
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None))
    loaded = held(proto)
    feeds = random_feeds(loaded.graph)
    simulator = HalfSimulator(loaded, HighPrecision(DType.FP16, ranges.measure(loaded, [feeds])))
    assert [view.tensor for view in simulator.views] == ["s"]
    assert np.abs(simulator.run(feeds, ["S"])["s"] - simulator.run(feeds, [])["s"]).max() > 0


def test_nodes_may_be_called_like_anything() -> None:
    proto = model(("MatMul", "x w", "c0"), ("Tanh", "c0", "y"), inputs={"x": (4, 32)}, weights={"w": weight(32, 16)})
    for index, node in enumerate(proto.graph.node):
        node.name = f"c{index}"
    loaded = held(proto)
    feeds = random_feeds(loaded.graph)
    simulator = HalfSimulator(loaded, HighPrecision(DType.FP16, ranges.measure(loaded, [feeds])))
    assert simulator.units == ("c0", "c1")
    assert np.abs(simulator.run(feeds, ["c0"])["y"] - simulator.run(feeds, [])["y"]).max() > 0
