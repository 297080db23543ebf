from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from qcompiler.passes.cleanup.inline_functions import InlineFunctions
from tests.kit.rewrite import check, check_skipped, check_untouched, model


def _with_function(opset: int = 17) -> onnx.ModelProto:
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    function = helper.make_function("acme", "Square", ["a"], ["c"], body, [helper.make_opsetid("", opset)])
    weight = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    proto = model(("MatMul", "x w", "m"), ("Square", "m", "y", {}, "acme"), weights={"w": weight}, domains=["acme"])
    proto.functions.append(function)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 512]))
    return proto


def test_a_call_becomes_the_nodes_of_the_function() -> None:
    graph, report = check(InlineFunctions(), _with_function(), ops=["MatMul", "Mul", "Relu"])
    assert report.notes[0].text == "function 'Square' inlined"
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert graph.functions == []


def test_a_function_of_another_opset_stays_a_call() -> None:
    check_skipped(InlineFunctions(), _with_function(opset=13), "another opset")


def test_a_model_without_functions_is_left_alone() -> None:
    check_untouched(InlineFunctions(), model(("Relu", "x", "y")))
