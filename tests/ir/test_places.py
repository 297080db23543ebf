from __future__ import annotations

import random
from collections.abc import Iterator

import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import InternalError
from qcompiler.ir import edit


class Counting(list[gs.Node]):
    """A list that counts how often somebody begins to walk through it."""

    walks = 0

    def __iter__(self) -> Iterator[gs.Node]:
        self.walks += 1
        return super().__iter__()


def _node(name: str) -> gs.Node:
    return gs.Node("Relu", name)


def _graph(count: int) -> gs.Graph:
    return gs.Graph([_node(str(i)) for i in range(count)])


def _same(found: list[gs.Node], wanted: list[gs.Node]) -> bool:
    return [id(node) for node in found] == [id(node) for node in wanted]


@pytest.mark.parametrize("seed", range(8))
def test_any_edits_leave_the_list_as_edits_of_a_plain_list_do(seed: int) -> None:
    chance = random.Random(seed)
    graph = _graph(60)
    wanted = list(graph.nodes)
    for turn in range(600):
        place = chance.randrange(len(wanted))
        anchor, made = wanted[place], _node(f"made {turn}")
        kind = chance.choice(["before", "behind", "several", "remove", "sweep", "look", "directly"])
        if kind == "before":
            edit.insert_before(graph, anchor, made)
            wanted.insert(place, made)
        elif kind == "behind":
            edit.insert_after(graph, anchor, made)
            wanted.insert(place + 1, made)
        elif kind == "several":
            more = [made, *(_node(f"made {turn}.{i}") for i in range(40))]
            edit.insert_at(graph, place, more)
            wanted[place:place] = more
        elif kind == "remove" and len(wanted) > 1:
            edit.remove_node(graph, anchor)
            del wanted[place]
        elif kind == "sweep" and len(wanted) > 40:
            doomed = {id(node): node for node in chance.sample(wanted, 30)}
            edit.remove_nodes(graph, doomed.values())
            wanted = [node for node in wanted if id(node) not in doomed]
        elif kind == "directly":
            graph.nodes.append(made)
            graph.nodes[0], graph.nodes[place] = graph.nodes[place], graph.nodes[0]
            wanted = list(graph.nodes)
        assert _same(graph.nodes, wanted)
        assert edit.index_of(graph, wanted[chance.randrange(len(wanted))]) < len(wanted)
        assert edit.index_of(graph, wanted[-1]) == len(wanted) - 1


def test_equal_nodes_are_told_apart() -> None:
    graph = gs.Graph([_node("same") for _ in range(3)])
    last = graph.nodes[2]
    assert edit.index_of(graph, last) == 2
    edit.remove_node(graph, graph.nodes[1])
    assert edit.index_of(graph, last) == 1


def test_a_node_that_is_not_there_is_refused_also_after_it_was() -> None:
    graph = _graph(3)
    node = graph.nodes[1]
    assert edit.index_of(graph, node) == 1
    edit.remove_node(graph, node)
    with pytest.raises(InternalError, match="is not in graph"):
        edit.index_of(graph, node)


def test_another_list_of_nodes_is_counted_anew() -> None:
    graph = _graph(4)
    node = graph.nodes[3]
    assert edit.index_of(graph, node) == 3
    graph.nodes = [_node("first"), node]
    assert edit.index_of(graph, node) == 1


@pytest.mark.parametrize("order", ["forward", "backward", "any"])
def test_edits_at_every_node_walk_the_list_once(order: str) -> None:
    graph = _graph(500)
    graph.nodes = Counting(graph.nodes)
    anchors = graph.nodes[:]
    if order == "any":
        random.Random(0).shuffle(anchors)
    for i, anchor in enumerate(anchors[::-1] if order == "backward" else anchors):
        made = _node(f"made {i}")
        edit.insert_before(graph, anchor, made)
        edit.insert_after(graph, made, _node(f"behind {i}"))
        edit.remove_node(graph, made)
    assert graph.nodes.walks == 1
    assert len(graph.nodes) == 1000
