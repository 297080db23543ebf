"""The pass over the rules: what it leaves, in which order it comes to ranks, what is refused at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import RULES, WriteOutFused, is_fused, refuse_left
from qcompiler.target import parse_target
from tests.kit.rewrite import check_skipped, check_untouched, check_written, graph_proto, model, to_graph

RNG = np.random.default_rng(0)
X = {"x": ("batch", "rows", 8)}


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def encoder_layer() -> onnx.ModelProto:
    """Attention, residual norms and a feed-forward part, as an optimiser leaves them."""
    nodes: list[tuple[Any, ...]] = [
        ("Attention", "x w b", "a", {"num_heads": 2}, MICROSOFT),
        ("MatMul", "a wo", "o"),
        ("SkipLayerNormalization", "o x g _ ob", "n", {}, MICROSOFT),
        ("MatMul", "n wu", "u"),
        ("BiasGelu", "u ub", "h", {}, MICROSOFT),
        ("FusedMatMul", "h wd", "d", {"transB": 1}, MICROSOFT),
        ("SkipLayerNormalization", "d n g", "y", {}, MICROSOFT),
    ]
    weights = {"w": draw(8, 24), "b": draw(24), "wo": draw(8, 8), "g": draw(8), "ob": draw(8)}
    return model(*nodes, inputs=X, weights={**weights, "wu": draw(8, 12), "ub": draw(12), "wd": draw(8, 12)}, opset=21)


def test_a_whole_layer() -> None:
    check_written(WriteOutFused(), encoder_layer())


def test_nodes_of_nested_graphs() -> None:
    then = graph_proto([("QuickGelu", "x", "t", {}, MICROSOFT)], {}, ["t"])
    other = graph_proto([("Neg", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 8), "flag": (bool, ())}, domains=(MICROSOFT,), opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto, {"x": draw(2, 8), "flag": np.array(True)})
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Mul", "Sigmoid", "Mul"]


def test_other_domains_and_plain_models_are_left_alone() -> None:
    check_untouched(WriteOutFused(), model(("Relu", "x", "y")))
    assert not is_fused(to_graph(model(("Gelu", "x", "y", {}, "their.own"), opset=21)).nodes[0])
    assert not is_fused(to_graph(model(("Gelu", "x", "y"), opset=21)).nodes[0])  # ONNX's


def test_some_of_them_alone() -> None:
    graph = to_graph(encoder_layer())
    assert WriteOutFused(only=("BiasGelu",))(graph).changed == 1


def test_an_opset_that_is_too_old_is_told() -> None:
    check_skipped(WriteOutFused(), model(("QuickGelu", "x", "y", {}, MICROSOFT), opset=17), "from opset 18 on")


def test_outputs_keep_their_names_and_the_graph_its_interface() -> None:
    graph = check_written(WriteOutFused(), encoder_layer())
    assert [tensor.name for tensor in graph.outputs] == ["y"]
    assert graph.nodes[-1].outputs[0] is graph.outputs[0]


@pytest.mark.parametrize("op", RULES)
def test_an_attribute_that_nobody_knows_is_named(op: str) -> None:
    proto = model((op, "x x x x", "y", {"novelty": 1}, MICROSOFT), inputs=X, opset=21)
    check_skipped(WriteOutFused(), proto, "has the attribute 'novelty'")


def test_what_is_left_is_refused_with_the_reason() -> None:
    graph = to_graph(
        model(
            ("Attention", "x w b", "y", {"num_heads": 2, "do_rotary": 1}, MICROSOFT),
            inputs=X, weights={"w": draw(8, 24), "b": draw(24)}, opset=21,
        )
    )  # fmt: skip
    report = WriteOutFused()(graph)
    refuse_left(graph, parse_target("onnxruntime"), [report])
    with pytest.raises(
        ModelError, match=r"node 'Y' \(Attention of domain 'com.microsoft'\).*Attention has do_rotary=1"
    ):
        refuse_left(graph, parse_target("tensorrt"), [report])


def test_what_has_no_rule_is_refused() -> None:
    graph = to_graph(model(("CDist", "x x", "y", {}, MICROSOFT), inputs={"x": (3, 8)}, opset=21))
    with pytest.raises(ModelError, match="there is no rule that writes it out"):
        refuse_left(graph, parse_target("tensorrt-rtx"), [WriteOutFused()(graph)])


def test_quantizers_of_that_domain_are_no_fused_operators() -> None:
    graph = to_graph(
        model(("QuantizeLinear", "x s", "y", {}, MICROSOFT), inputs=X, weights={"s": np.float32(0.1)}, opset=21)
    )
    refuse_left(graph, parse_target("tensorrt-rtx"), [])
