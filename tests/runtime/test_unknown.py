"""Which operators ONNX Runtime cannot run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.runtime.unknown import unknown_nodes
from tests.kit.rewrite import graph_proto, model, node, to_graph


@pytest.mark.parametrize(
    ("op", "reads", "domain", "unknown"),
    [
        ("Relu", "x", "", False),
        ("EfficientNMS_TRT", "x x", "", True),
        ("EfficientNMS_TRT", "x x", "TRT", True),
        ("SimplifiedLayerNormalization", "x x", "", False),
        ("QuickGelu", "x", MICROSOFT, False),
        ("BiasAdd", "x x x", MICROSOFT, True),  # on GPUs only
        ("Normalizer", "x", "ai.onnx.ml", False),
        ("Mine", "x", "my.company", True),
    ],
)
def test_an_operator_is_asked_for(op: str, reads: str, domain: str, unknown: bool) -> None:
    graph = to_graph(model((op, reads, "y", {}, domain), opset=21))
    assert bool(unknown_nodes(graph)) is unknown


def test_a_type_without_a_kernel_is_no_unknown_operator() -> None:
    graph = to_graph(model(("BiasGelu", "x x", "y", {}, MICROSOFT), inputs={"x": (np.float16, (4,))}, opset=21))
    assert unknown_nodes(graph) == []


def test_nodes_of_nested_graphs_are_found() -> None:
    then = graph_proto([("Mine", "x", "t", {}, "my.company")], {}, ["t"])
    other = graph_proto([("Neg", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={"x": (2, 8), "flag": (bool, ())}
    )
    assert [one.op for one in unknown_nodes(to_graph(proto))] == ["Mine"]


@pytest.mark.parametrize(("inner", "found"), [(("Relu", ""), []), (("Mine", "my.company"), ["Twice"])])
def test_a_local_function_is_known_where_its_body_is(inner: tuple[str, str], found: list[str]) -> None:
    proto = model(("Twice", "x", "y", {}, "local"), opset=21)
    body = [node(inner[0], "a", "b", {}, inner[1]), node("Add", "b b", "c")]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("my.company", 1)]
    proto.functions.append(helper.make_function("local", "Twice", ["a"], ["c"], body, imports))
    assert [one.op for one in unknown_nodes(to_graph(proto))] == found
    assert onnx.ModelProto.FromString(proto.SerializeToString()) == proto
