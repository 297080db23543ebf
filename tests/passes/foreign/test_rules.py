"""What the rules ask of a node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.names import Names
from qcompiler.passes.foreign import _rules as rules
from qcompiler.passes.foreign._rules import NotWrittenError, RankUnknownError
from qcompiler.passes.node_writer import NodeWriter


def writer(**attrs: object) -> NodeWriter:
    """Of a node that reads x, of unknown rank, and y [2, open], and leaves its third input out."""
    x, y = gs.Variable("x", np.float32), gs.Variable("y", np.float32, [2, "open"])
    node = gs.Node("Op", "op", dict(attrs), [x, y, gs.Variable.empty()], [gs.Variable("z"), gs.Variable.empty()])
    graph = gs.Graph([node], [x, y], [node.outputs[0]])
    return NodeWriter(graph, node, Names(graph), np.dtype(np.float32))


def test_attributes_are_read_in_their_type() -> None:
    w = writer(a=1, b=2.5, c=b"Relu")
    assert (rules.number(w, "a", 3), rules.number(w, "none", 3)) == (1.0, 3.0)
    assert (rules.integer(w, "a"), rules.integer(w, "none")) == (1, 0)
    assert (rules.text(w, "c"), rules.text(w, "none")) == ("Relu", "")
    assert rules.needed(w, "a") == 1


@pytest.mark.parametrize(
    ("ask", "kind", "why"),
    [
        (lambda w: rules.needed(w, "heads"), NotWrittenError, "has no attribute 'heads'"),
        (lambda w: rules.rank(w.reads(0)), RankUnknownError, "reads 'x', whose rank is not known"),
        (lambda w: rules.fixed(w.reads(1), 1), RankUnknownError, "reads 'y', whose size along axis 1 is open"),
        (lambda w: rules.values(w, 1), NotWrittenError, "computes its input 'y'"),
        (lambda w: rules.refuse_inputs(w, mask=1), NotWrittenError, "has the input 'mask'"),
        (lambda w: rules.refuse_outputs(w, mean=0), NotWrittenError, "gives the output 'mean'"),
        (lambda w: rules.refuse_values(w, a=2), NotWrittenError, "has a=1"),
    ],
)
def test_what_is_missing_is_named(ask: Callable[[NodeWriter], object], kind: type[NotWrittenError], why: str) -> None:
    with pytest.raises(kind, match=why):
        ask(writer(a=1))


def test_what_is_left_out_or_as_it_should_be_is_fine() -> None:
    w = writer(a=1)
    rules.refuse_inputs(w, mask=2, past=7)
    rules.refuse_outputs(w, mean=1, sum=5)
    rules.refuse_values(w, a=1, none=0)
    assert (rules.rank(w.reads(1)), rules.fixed(w.reads(1), 0)) == (2, 2)


def test_a_part_has_the_type_of_the_whole() -> None:
    w = writer()
    w.reads(1).dtype = np.int32
    assert rules.cut(w, "part", w.reads(1), 0, 1, 1).dtype == np.int32
