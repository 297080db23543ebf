"""Who reads what of whom, out of a manifest."""

from __future__ import annotations

from qcompiler.tools.wires import Wires

MANIFEST = {
    "plan": [
        {"node": "a", "op": "Conv", "precision": "int8"},
        {"node": "b", "op": "Relu", "precision": "fp16"},
        {"node": "c", "op": "Add", "precision": "fp16"},
    ],
    "graph": {
        "tensors": ["x", "t a", "t b", "y", "n"],
        "inputs": [0],
        "outputs": [3, 2],
        "others": {"shape": "Shape"},
        "reads": [[0], [1], [2, 0], [0]],
        "writes": [[1], [2], [3], [4]],
        "weights": {"a": {"tensor": "w", "shape": [2, 3], "axis": 0}},
        "pairs": {"c": [1]},
    },
}


def test_neighbours_have_operator_and_precision() -> None:
    wires = Wires.of(MANIFEST)
    assert wires.known
    assert list(wires.nodes) == ["a", "b", "c", "shape"]
    assert (wires.reads("c"), wires.writes("c")) == (["t b", "x"], ["y"])
    assert wires.source("t a") == {
        "tensor": "t a",
        "input": False,
        "by": {"node": "a", "op": "Conv", "precision": "int8"},
    }
    assert wires.source("x") == {"tensor": "x", "input": True, "by": None}
    found = wires.readers("x")
    assert [one["node"] for one in found["by"]] == ["a", "c", "shape"]
    assert found["by"][-1]["precision"] is None
    assert wires.readers("t b") == {
        "tensor": "t b",
        "output": True,
        "by": [{"node": "c", "op": "Add", "precision": "fp16"}],
    }
    assert (wires.weights["a"]["axis"], wires.pairs["c"]) == (0, [1])
    assert (wires.writer("y"), wires.writer("x")) == ("c", None)


def test_of_an_older_manifest_the_nodes_are_known_alone() -> None:
    wires = Wires.of({"plan": MANIFEST["plan"]})
    assert not wires.known
    assert list(wires.nodes) == ["a", "b", "c"]
    assert (wires.reads("a"), wires.writes("a"), wires.writer("x")) == ((), (), None)
    assert Wires.of({}).nodes == {}
