"""Where a model is cut for trials: where it saves more than a session costs, and not within what a group reads."""

from __future__ import annotations

import onnx
import pytest

from qcompiler.ir.model import to_proto
from qcompiler.runtime import shapes
from qcompiler.tools.sensitivity.stretches import BUDGET, Spot, stretches
from tests.kit.rewrite import model, to_graph
from tests.kit.tools.studied import normal

DEPTH = 6


def chain(side: bool = False) -> onnx.ModelProto:
    """Six products one behind the other, nodes 0, 2, 4 and so on; `side` reads the input again at the end."""
    nodes = []
    for at in range(DEPTH):
        nodes += [("MatMul", f"{f'r{at - 1}' if at else 'x'} w", f"h{at}"), ("Relu", f"h{at}", f"r{at}")]
    nodes.append(("Add", f"r{DEPTH - 1} {'r0' if side else 'x'}", "y"))
    graph = to_graph(model(*nodes, inputs={"x": (4, 16)}, weights={"w": normal(16, 16)}))
    shapes.infer(graph)
    return to_proto(graph)[0]


def spots(size: int = 0) -> dict[str, Spot]:
    return {f"g{at}": Spot(2 * at, 2 * at, size) for at in range(DEPTH)}


WORK = [1.0, 0.0] * DEPTH + [0.0]


def test_a_cut_is_made_where_it_saves_more_than_a_session_costs() -> None:
    (alone,) = stretches(chain(), spots(), WORK, trials=1)
    assert (alone.start, alone.groups, alone.share) == (0, tuple(spots()), 1.0)
    found = stretches(chain(), spots(), WORK, trials=1000)
    assert [one.groups for one in found] == [(f"g{at}",) for at in range(DEPTH)]
    assert [one.share for one in found] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    some = stretches(chain(), spots(), WORK, trials=16)
    assert [one.groups for one in some] == [("g0", "g1", "g2"), ("g3", "g4"), ("g5",)]
    assert [name for one in some for name in one.groups] == list(spots())


def test_a_cut_is_made_where_a_stretch_would_hold_too_much() -> None:
    found = stretches(chain(), spots(BUDGET // 2), WORK, trials=1)
    assert all(len(one.groups) <= 2 for one in found)


def test_no_cut_lies_within_what_a_group_reads() -> None:
    late = {**spots(), "g1": Spot(2, 7, 0)}  # a second layer of it adds what node 6 makes
    starts = [one.start for one in stretches(chain(), late, WORK, trials=1000)]
    assert not [start for start in starts if 2 < start < 7]


def test_a_graph_whose_types_are_not_known_is_not_cut() -> None:
    proto = chain()
    del proto.graph.value_info[:]
    assert len(stretches(proto, spots(), WORK, trials=1000)) == 1
