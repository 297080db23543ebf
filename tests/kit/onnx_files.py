"""Models written as ONNX text, stored as files, read back and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from qcompiler.ir import model as models

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float32)


def proto(text: str, *weights: TensorProto, ir_version: int = 10, opset: int = 21) -> ModelProto:
    """A model written as ONNX text without its header, and with these initializers."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "local": 1]> {text}')
    model.graph.initializer.extend(weights)
    return model


def linear() -> ModelProto:
    """MatMul with a large weight, then Add with a small one."""
    return proto(
        "g (float[batch, 64] x) => (float[batch, 32] y) { t = MatMul(x, w) y = Add(t, b) }",
        numpy_helper.from_array(WEIGHT, "w"),
        numpy_helper.from_array(WEIGHT[0], "b"),
    )


def session(source: Path | bytes, arrays: dict[str, Array] | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if arrays:
        options.add_external_initializers(
            list(arrays), [ort.OrtValue.ortvalue_from_numpy(one) for one in arrays.values()]
        )
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def round_trip(path: Path) -> ModelProto:
    """Loads, copies, saves, and returns what was saved."""
    out = path.with_name("round.onnx")
    models.save(models.copy(models.load(path)), out)
    onnx.checker.check_model(out)
    return onnx.load(out)


SPARSE = helper.make_sparse_tensor(
    numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "s"), numpy_helper.from_array(np.array([1, 6])), [2, 4]
)


UNUSUAL = {
    "an If whose branches read outer tensors and have weights": """
        g (bool c, float[4] x) => (float[4] y) <float[4] outer = {1, 2, 3, 4}> {
            t = Relu(x)
            y = If (c) <
                then_branch = one () => (float[4] a) <float[4] w = {1, 1, 1, 1}> { b = Add(t, w) a = Mul(b, outer) },
                else_branch = two () => (float[4] a) <float[4] w = {2, 2, 2, 2}> { b = Mul(t, w) a = Sub(b, outer) }
            >
        }""",
    "a Loop with a carried tensor and a scan output": """
        g (int64 n, float[4] x) => (float[4] y, float[k, 4] all) {
            c = Constant<value = bool {1}>()
            y, all = Loop (n, c, x) <
                body = b (int64 i, bool ci, float[4] v) => (bool co, float[4] w, float[4] o) {
                    co = Identity(ci) w = Mul(v, x) o = Relu(w)
                }
            >
        }""",
    "a Scan": """
        g (float[4] s, float[k, 4] x) => (float[4] y, float[k, 4] z) {
            y, z = Scan <num_scan_inputs = 1, body = b (float[4] a, float[4] e) => (float[4] a2, float[4] o) {
                a2 = Add(a, e) o = Identity(a2)
            }> (s, x)
        }""",
    "sequences": """
        g (float[4] x) => (seq(float[4]) y, float[1, 4] first) {
            s = SequenceConstruct(x, x) y = SequenceInsert(s, x) zero = Constant<value_int = 0>()
            f = SequenceAt(y, zero) first = Reshape <allowzero = 0> (f, shape) shape = Constant<value_ints = [1, 4]>()
        }""",
    "optional values": """
        g (optional(float[4]) x) => (float[4] y, bool there) {
            there = OptionalHasElement(x) y = OptionalGetElement(x)
        }""",
    "strings": "g (string[3] x) => (string[3] y) { y = StringConcat(x, words) }",
}


def normal(graph: onnx.GraphProto, main: bool = True) -> onnx.GraphProto:
    """The graph in a form that does not depend on node names, node order and the order of weights."""
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    nodes = sorted(graph.node, key=lambda node: node.output[0])
    del result.node[:], result.initializer[:], result.value_info[:]
    for node in nodes:
        twin = result.node.add()
        twin.CopyFrom(node)
        twin.ClearField("name")
        if not twin.domain:
            twin.ClearField("domain")  # set to nothing by the text parser
        for attribute in twin.attribute:
            if attribute.type == AttributeProto.GRAPH:
                attribute.g.CopyFrom(normal(attribute.g, main=False))
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t), attribute.t.name))
    for tensor in sorted(graph.initializer, key=lambda one: one.name):
        result.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return result
