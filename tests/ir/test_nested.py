"""Where values cross the border of If, Loop and Scan: each one by its index, and which of them go round."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import nested
from tests.kit.rewrite import branching, graph_proto, model, to_graph

I64, BOOL = np.int64, bool


def loop(states: int, stacked: int) -> gs.Node:
    """A Loop that hands on so many states and stacks so many results; body tensors are numbered."""
    carried = [f"in{i}" for i in range(states)]
    body = graph_proto(
        [
            ("Identity", "c", "co"),
            *(("Neg", name, f"out{i}") for i, name in enumerate(carried)),
            *(("Abs", carried[0], f"each{i}") for i in range(stacked)),
        ],
        {"i": (I64, ()), "c": (BOOL, ()), **dict.fromkeys(carried, (2, 4))},
        ["co", *(f"out{i}" for i in range(states)), *(f"each{i}" for i in range(stacked))],
    )
    outputs = [*(f"y{i}" for i in range(states)), *(f"z{i}" for i in range(stacked))]
    reads = " ".join(["n", "go", *["x"] * states])
    spec = ("Loop", reads, " ".join(outputs), {"body": body})
    proto = model(spec, inputs={"n": (I64, ()), "go": (BOOL, ()), "x": (2, 4)}, outputs=outputs)
    return to_graph(proto).nodes[0]


def scan() -> gs.Node:
    """One state and two sequences; the sum of each pair of elements is stacked."""
    body = graph_proto(
        [("Add", "e f", "each"), ("Add", "s each", "out")], {"s": (4,), "e": (4,), "f": (4,)}, ["out", "each"]
    )
    spec = ("Scan", "x a b", "y z", {"body": body, "num_scan_inputs": 2})
    return to_graph(model(spec, inputs={"x": (4,), "a": (3, 4), "b": (3, 4)}, outputs=["y", "z"])).nodes[0]


@pytest.mark.parametrize(("states", "stacked"), [(1, 0), (1, 2), (3, 1)])
def test_a_loop_skips_the_iteration_and_the_conditions(states: int, stacked: int) -> None:
    node = loop(states, stacked)
    assert [(one.index, one.tensor.name, one.state) for one in nested.entries(node)] == [
        (i + 2, f"in{i}", True) for i in range(states)
    ]
    assert [(one.index, [t.name for t in one.tensors], one.state) for one in nested.exits(node)] == [
        *((i, [f"out{i}"], True) for i in range(states)),
        *((i + states, [f"each{i}"], False) for i in range(stacked)),
    ]


def test_a_scan_tells_states_from_elements_and_stacks() -> None:
    node = scan()
    assert [(one.index, one.tensor.name, one.state) for one in nested.entries(node)] == [
        (0, "s", True),
        (1, "e", False),
        (2, "f", False),
    ]
    assert [(one.index, one.tensors[0].name, one.state) for one in nested.exits(node)] == [
        (0, "out", True),
        (1, "each", False),
    ]


def test_nothing_enters_an_if_and_both_branches_leave_it() -> None:
    node = branching().nodes[1]
    assert nested.entries(node) == []
    (found,) = nested.exits(node)
    assert (found.index, [t.name for t in found.tensors], found.state) == (
        0,
        ["o", "t"],
        False,
    )  # by the names of the attributes


def test_entries_and_exits_are_the_tensors_themselves() -> None:
    node = loop(2, 1)
    body = node.attrs["body"]
    assert all(one.tensor is body.inputs[one.index] for one in nested.entries(node))
    assert all(one.tensors[0] is body.outputs[one.index + 1] for one in nested.exits(node))


def test_types_are_known_only_through_operators_of_onnx_that_carry_graphs() -> None:
    node = scan()
    assert nested.is_typed(node)
    node.domain = "com.acme"
    assert not nested.is_typed(node)
    assert nested.entries(node) == []
    assert nested.exits(node) == []
    assert not nested.is_typed(gs.Node("Loop", "empty"))
    assert not nested.is_typed(gs.Node("Relu", "relu"))


def test_every_node_is_found_with_its_graph_and_before_what_it_nests() -> None:
    graph = branching()
    branch = graph.nodes[1]
    found = list(nested.homes(graph))
    assert [node.op for node, _ in found] == ["Abs", "If", "Neg", "Mul", "Relu", "Add"]
    then, other = branch.attrs["then_branch"], branch.attrs["else_branch"]
    assert [id(home) for _, home in found] == [id(one) for one in (graph, graph, other, then, then, graph)]
