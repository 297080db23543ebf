from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import InternalError
from qcompiler.ir.names import Names
from qcompiler.passes.node_writer import NodeWriter
from tests.kit.rewrite import model, to_graph


def writer() -> NodeWriter:
    """Of the Split in the middle of Relu, Split, Neg; the first half is an output of the model, too."""
    proto = model(
        ("Relu", "x", "a"),
        ("Split", "a", "left right", {"num_outputs": 2, "axis": 1}),
        ("Neg", "left", "y"),
        outputs=["y", "left", "right"],
        opset=18,
    )
    graph = to_graph(proto)
    return NodeWriter(graph, graph.nodes[1], Names(graph), np.dtype(np.float32))


def test_outputs_keep_their_names_and_their_readers() -> None:
    w = writer()
    first = w.op("Slice", "first", [w.reads(0), w.integers("0", [0]), w.integers("2", [2]), w.integers("1", [1])])
    w.result(0, first)
    w.result(1, w.op("Neg", "again", [first]))
    assert w.finish() == 2
    assert [node.op for node in w.graph.nodes] == ["Relu", "Slice", "Neg", "Neg"]
    assert [tensor.name for tensor in w.graph.outputs] == ["y", "left", "right"]
    sliced, again, last = w.graph.nodes[1:]
    assert sliced.outputs[0].name == "left"
    assert again.inputs[0] is sliced.outputs[0]
    assert last.inputs[0] is sliced.outputs[0]


def test_what_others_made_is_copied() -> None:
    w = writer()
    w.result(0, w.reads(0))
    w.result(1, w.reads(0))
    assert w.finish() == 2
    assert [node.op for node in w.graph.nodes] == ["Relu", "Identity", "Identity", "Neg"]


def test_an_output_must_not_be_forgotten() -> None:
    w = writer()
    w.result(0, w.op("Neg", "negative", [w.reads(0)]))
    with pytest.raises(InternalError, match="right"):
        w.finish()


def test_an_input_that_is_left_out() -> None:
    w = writer()
    assert w.read(1) is None
    with pytest.raises(InternalError, match="no input 1"):
        w.reads(1)


def test_what_stands_for_two_outputs_is_copied_for_the_second() -> None:
    w = writer()
    both = w.op("Exp", "both", [w.reads(0)])
    w.result(0, both)
    w.result(1, both)
    assert w.finish() == 2
    assert [node.op for node in w.graph.nodes] == ["Relu", "Exp", "Identity", "Neg"]
    assert w.graph.nodes[2].inputs[0] is w.graph.nodes[1].outputs[0]
    assert [node.outputs[0].name for node in w.graph.nodes] == ["a", "left", "right", "y"]


def test_a_node_may_be_called_like_the_one_it_stands_for() -> None:
    w = writer()
    w.ops("Neg", "negative", [w.reads(0)], 1, name=w.node.name)
    assert [node.name for node in w.nodes] == [w.node.name]


def test_what_is_discarded_reads_nothing_any_more() -> None:
    w = writer()
    source = w.reads(0)
    w.op("Neg", "again", [w.op("Exp", "first", [source])])
    w.discard()
    assert [node.op for node in source.outputs] == ["Split"]
    assert not w.nodes
