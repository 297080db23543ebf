"""Operators that draw, and operators with bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.kit.opsets.node import Held, Node, real

X = real(2, 3, 4)


def drawn() -> Iterator[Node]:
    """What is drawn is held fixed by whoever runs them."""
    yield Node("Bernoulli", {}, (np.abs(np.tanh(X)),))
    yield Node("Multinomial", {"sample_size": 5}, (real(2, 3),))
    for op in ("RandomNormal", "RandomUniform"):
        yield Node(op, {"shape": [2, 3]}, ())
        yield Node(f"{op}Like", {}, (X,))


def with_bodies() -> Iterator[Node]:
    """Their bodies hold operators that changed: Softmax over two axes, Squeeze with an attribute."""
    flag = np.array(True)
    yield Node("If", {"then_branch": _graph("s", "softmax"), "else_branch": _graph("e", "softmax")}, (flag,), most=12)
    yield Node("If", {"then_branch": _graph("s", "mean"), "else_branch": _graph("e", "mean")}, (flag,), most=17)
    yield Node("If", {"then_branch": _graph("s", "relu"), "else_branch": _graph("e", "relu")}, (flag,))
    for kind, most in (("softmax", 12), ("mean", 17), ("relu", 99)):
        count, state = Held(3, np.int64), real(2, 3, 4)
        yield Node("Loop", {"body": _loop(kind)}, (count, Held(True), state), (True, True), most=most)
        scan = {"body": _scan(kind), "num_scan_inputs": 1}
        yield Node("Scan", scan, (real(3, 4), real(5, 3, 4, seed=1)), (True, True), least=9, most=most)
    old = {"body": _scan("softmax"), "num_scan_inputs": 1}
    given = (None, real(2, 3, 4), real(2, 5, 3, 4, seed=1))
    yield Node("Scan", old, given, (True, True), most=8)
    yield Node("Scan", {**old, "directions": [1]}, given, (True, True), most=8)


_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("Softmax", {"axis": 0}),
    "mean": ("ReduceMean", {"axes": [1]}),
    "relu": ("Relu", {}),
}


def _one(kind: str, read: str, name: str) -> onnx.NodeProto:
    op, attrs = _KINDS[kind]
    return helper.make_node(op, [read], [name], name=f"{name}_node", **attrs)


def _graph(prefix: str, kind: str) -> onnx.GraphProto:
    held = numpy_helper.from_array(X, f"{prefix}_x")
    out = onnx.ValueInfoProto(name=f"{prefix}_y")
    out.type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_graph([_one(kind, held.name, out.name)], prefix, [], [out], [held])


def _value(name: str, dtype: int, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _loop(kind: str) -> onnx.GraphProto:
    inputs = [_value("at", TensorProto.INT64, []), _value("on", TensorProto.BOOL, []), _value("h", 1, [2, 3, 4])]
    body = [helper.make_node("Identity", ["on"], ["on_too"]), _one(kind, "h", "made")]
    body.append(helper.make_node("Add", ["h", "made"], ["next"]))
    outputs = [_value("on_too", TensorProto.BOOL, []), _value("next", 1, [2, 3, 4]), _value("made", 1)]
    return helper.make_graph(body, "body", inputs, outputs)


def _scan(kind: str) -> onnx.GraphProto:
    body = [_one(kind, "part", "made"), helper.make_node("Add", ["h", "made"], ["next"])]
    inputs, outputs = (
        [_value("h", 1, [3, 4]), _value("part", 1, [3, 4])],
        [_value("next", 1, [3, 4]), _value("made", 1)],
    )
    return helper.make_graph(body, "body", inputs, outputs)
