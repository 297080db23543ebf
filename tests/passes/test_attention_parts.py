from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.passes import attention_parts as parts
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.planning.placement.attention import find_attentions
from qcompiler.runtime import shapes
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(5)
FLOAT = np.dtype(np.float32)


def writer(keys: int = 2) -> NodeWriter:
    """Of a node that reads q [2, 4, rows, 8], k and v [2, keys, columns, 8]."""
    inputs = {"q": (2, 4, "rows", 8), "k": (2, keys, "columns", 8), "v": (2, keys, "columns", 8)}
    graph = to_graph(model(("Sum", "q k v", "y"), inputs=inputs, opset=18))
    return NodeWriter(graph, graph.nodes[0], Names(graph), FLOAT)


def feeds(keys: int = 2) -> dict[str, Any]:
    shapes_ = {"q": (2, 4, 5, 8), "k": (2, keys, 7, 8), "v": (2, keys, 7, 8)}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes_.items()}


def expected(feed: dict[str, Any], bias: Any, scale: float) -> Any:
    k, v = (np.repeat(feed[name], 4 // feed[name].shape[1], axis=1).astype(np.float64) for name in "kv")
    logits = feed["q"] @ np.swapaxes(k, -1, -2) * scale + bias
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True) @ v


def run(w: NodeWriter, result: gs.Tensor, feed: dict[str, Any]) -> Any:
    w.result(0, result)
    w.finish()
    return next(iter(Session(w.graph, optimize=False).run(feed).values()))


@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_attention_without_a_mask(keys: int, scale: float | None) -> None:
    w, feed = writer(keys), feeds(keys)
    heads = parts.Heads(4, keys, 8, 8, scale=scale)
    written = parts.attend(w, w.reads(0), w.reads(1), w.reads(2), heads)
    y = run(w, written.context, feed)
    np.testing.assert_allclose(y, expected(feed, 0, 8**-0.5 if scale is None else scale), atol=1e-5)


def test_what_is_written_is_found_as_an_attention_that_can_be_quantized() -> None:
    w = writer()
    mask = parts.masked(w, parts.causal(w, w.reads(0), w.reads(1)), None, blind=False)
    run(w, parts.attend(w, w.reads(0), w.reads(1), w.reads(2), parts.Heads(4, 2, 8, 8), mask).context, feeds())
    shapes.infer(w.graph)
    (found,) = find_attentions(w.graph)
    assert found.scores.startswith("Y/scores")
    assert found.context.startswith("Y/weighted")


def test_a_causal_mask_alone_leaves_no_row_blind() -> None:
    w, feed = writer(), feeds()
    mask = parts.masked(w, parts.causal(w, w.reads(0), w.reads(1)), None, blind=False)
    assert mask.sees is None
    y = run(w, parts.attend(w, w.reads(0), w.reads(1), w.reads(2), parts.Heads(4, 2, 8, 8), mask).context, feed)
    np.testing.assert_allclose(y, expected(feed, np.where(np.tri(5, 7, dtype=bool), 0, -np.inf), 8**-0.5), atol=1e-5)


@pytest.mark.parametrize("blind", [False, True])
def test_a_constant_mask_is_looked_at(blind: bool) -> None:
    w = writer()
    bias = np.zeros((5, 7), np.float32)
    bias[2] = parts.lowest(FLOAT) if blind else -1e4
    mask = parts.masked(w, None, w.constant("bias", bias))
    assert (mask.sees is not None) == blind
    assert not any(graphs.is_op(node, "ReduceMax") for node in w.nodes)


def test_heads_are_split_and_joined_again() -> None:
    graph = to_graph(model(("Neg", "x", "y"), inputs={"x": ("b", "s", 12)}, opset=18))
    w = NodeWriter(graph, graph.nodes[0], Names(graph), FLOAT)
    apart = parts.split_heads(w, "x", w.reads(0), 3)
    x = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    np.testing.assert_array_equal(run(w, parts.join_heads(w, "x", apart, 12), {"x": x}), x)
