from __future__ import annotations

from typing import Any

import pytest
from onnx import helper

from qcompiler.runtime.schemas import changes, same_signature, says_the_same, schema, unsaid, versions
from tests.kit.rewrite import graph_proto, model, to_graph


def test_versions_and_changes() -> None:
    assert versions("RoiAlign") == (10, 16, 22)
    assert changes("RoiAlign") == (16,)
    assert versions("EfficientNMS_TRT") == ()
    assert schema("Gelu", 19) is None


def test_signatures_tell_more_types_from_more_words() -> None:
    node = to_graph(model(("Relu", "x", "y"))).nodes[0]
    assert same_signature(node, 6, 14)
    node.op = "Clip"
    assert not same_signature(node, 6, 11)
    node.op = "EfficientNMS_TRT"
    assert not same_signature(node, 6, 11)


@pytest.mark.parametrize(
    ("node", "old", "new", "same"),
    [
        (helper.make_node("DequantizeLinear", ["x", "s"], ["y"]), 23, 21, True),
        (helper.make_node("DequantizeLinear", ["x", "s"], ["y"], output_dtype=1), 23, 21, False),
        (helper.make_node("RoiAlign", ["x", "r", "b"], ["y"]), 22, 16, True),
        (helper.make_node("RoiAlign", ["x", "r", "b"], ["y"]), 16, 10, False),  # another default
        (helper.make_node("Squeeze", ["x", "a"], ["y"]), 13, 11, False),
        (helper.make_node("Squeeze", ["x"], ["y"]), 13, 11, True),
        (helper.make_node("Resize", ["x", "", "s"], ["y"]), 11, 10, False),
        (helper.make_node("Upsample", ["x", "s"], ["y"]), 9, 10, False),
        (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), 23, 21, True),
        (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), 19, 13, False),  # saturate is 1 there
        (helper.make_node("Gelu", ["x"], ["y"]), 20, 19, False),
    ],
)
def test_what_a_node_says_elsewhere(node: Any, old: int, new: int, same: bool) -> None:
    assert says_the_same(node, old, new) is same


def test_the_first_node_that_an_older_opset_cannot_say() -> None:
    then = graph_proto([("RMSNormalization", "x w", "t")], {}, ["t"])
    other = graph_proto([("Relu", "x", "o")], {}, ["o"])
    spec = ("If", "flag", "y", {"then_branch": then, "else_branch": other})
    proto = model(spec, inputs={"x": (2, 4), "w": (4,), "flag": (bool, ())}, opset=23)
    node = unsaid(proto, 21)
    assert node is not None
    assert node.name == "T"
    assert unsaid(model(("Plugin", "x", "a"), ("Relu", "a", "y"), opset=23), 21) is None
