"""How much a model multiplies: in nested graphs as one run shows it, and without data as far as shapes tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.macs import uncounted
from qcompiler.passes.base import Pipeline
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.runtime import work
from qcompiler.runtime.work import count_macs, count_macs_without_data, nested_work
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

RNG = np.random.default_rng(1)
SMALL, LARGE = (RNG.standard_normal((size, size)).astype(np.float32) for size in (8, 64))


def named(*nodes: Spec, inputs: dict[str, Any], **weights: Any) -> gs.Graph:
    graph = to_graph(model(*nodes, inputs=inputs, weights=weights, opset=21))
    Pipeline(NameEverything())(graph)
    return graph


def growing(w: Any) -> gs.Graph:
    """A Loop whose state gets two rows more in each round, and a product with `w` of all of them."""
    body = graph_proto(
        [
            ("Identity", "go", "on"),
            ("MatMul", "a w", "b"),
            ("Slice", "b zero two zero", "c"),
            ("Concat", "b c", "d", {"axis": 0}),
        ],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "a": (None, w.shape[0])},
        ["on", "d"],
    )
    constants = {"t": np.array(True), "zero": np.array([0]), "two": np.array([2])}
    inputs = {"x": (4, w.shape[0]), "n": (np.int64, ())}
    return named(("Loop", "n t x", "y", {"body": body}), inputs=inputs, w=w, **constants)


@pytest.mark.parametrize("w", [SMALL, LARGE])  # ONNX Runtime is lent the large one, and holds the small one itself
def test_a_loop_counts_its_rounds_as_they_were(w: Any) -> None:
    feeds = {"x": np.ones((4, len(w)), np.float32), "n": np.array(3)}
    assert count_macs(growing(w), feeds) == {"B": (4 + 6 + 8) * w.size}


def chosen() -> gs.Graph:
    """An If with one product in one branch and two in the other."""
    then = graph_proto([("MatMul", "x w", "a")], {}, ["a"])
    other = graph_proto([("MatMul", "x w", "b"), ("MatMul", "b w", "c")], {}, ["c"])
    nodes = (("If", "c0", "h", {"then_branch": then, "else_branch": other}), ("MatMul", "h w", "y"))
    return named(*nodes, inputs={"x": ("n", 8), "c0": (np.bool_, ())}, w=SMALL)


@pytest.mark.parametrize(
    ("flag", "expected"), [(True, {"A": 192, "B": 0, "C": 0}), (False, {"A": 0, "B": 192, "C": 192})]
)
def test_the_branch_that_ran_counts(flag: bool, expected: dict[str, int]) -> None:
    feeds = {"x": np.ones((3, 8), np.float32), "c0": np.array(flag)}
    assert nested_work(chosen(), feeds) == expected
    assert count_macs(chosen(), feeds) == {**expected, "Y": 192}


def test_without_data_open_axes_count_as_one_and_the_larger_branch_counts() -> None:
    assert count_macs_without_data(chosen()) == {"A": 0, "B": 64, "C": 64, "Y": 64}
    assert count_macs_without_data(chosen(), {"x": (3, 8)}) == {"A": 0, "B": 192, "C": 192, "Y": 192}
    assert uncounted(growing(SMALL), count_macs_without_data(growing(SMALL))) == ["B"]


def test_a_model_without_work_in_nested_graphs_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(work, "Session", never)
    graph = named(("MatMul", "x w", "y"), inputs={"x": (4, 8)}, w=SMALL)
    assert count_macs(graph, {"x": np.ones((4, 8), np.float32)}) == {"Y": 256}


def test_what_a_profile_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"x": np.ones((4, 8), np.float32), "n": np.array(3)}
    with monkeypatch.context() as patch:
        patch.setattr(work, "MOST", 3)  # as if the profile were full
        assert count_macs(growing(SMALL), feeds) == {}
    foreign = graph_proto(
        [("BiasGelu", "x b", "g", {}, "com.microsoft"), ("CDist", "g g", "a", {}, "com.microsoft")], {}, ["a"]
    )
    node = ("If", "c", "y", {"then_branch": foreign, "else_branch": graph_proto([("MatMul", "x w", "m")], {}, ["m"])})
    proto = model(node, inputs={"x": (8, 8), "c": (np.bool_, ())}, weights={"w": SMALL, "b": SMALL[0]}, opset=21)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert nested_work(to_graph(proto), {"x": np.ones((8, 8), np.float32), "c": np.array(True)}) == {"M": 0}
