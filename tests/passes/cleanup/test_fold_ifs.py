from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.passes.cleanup.fold_ifs import FoldIfs
from qcompiler.passes.cleanup.loosen_squeeze import LoosenSqueeze
from qcompiler.passes.cleanup.unroll_lstm import UnrollLSTM
from qcompiler.passes.pipelines import clean_up
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from qcompiler.verification.equivalence import differences
from tests.kit import models as real
from tests.kit.rewrite import Spec, check, check_skipped, check_untouched, graph_proto, model, random_feeds, to_graph

AXIS = {"axis": np.array([0]), "last": np.array([2])}
LSTM = {
    "w": np.random.default_rng(0).standard_normal((1, 20, 4)).astype(np.float32),
    "r": np.random.default_rng(1).standard_normal((1, 20, 5)).astype(np.float32),
}


def branch(*nodes: Spec, weights: dict[str, Any] | None = None) -> onnx.GraphProto:
    """A branch that returns what its last node writes."""
    return graph_proto(nodes, {}, [nodes[-1][2]], weights)


def choice(condition: str, then: onnx.GraphProto, other: onnx.GraphProto, out: str = "y") -> Spec:
    return ("If", condition, out, {"then_branch": then, "else_branch": other})


RELU, NEG = branch(("Relu", "x", "t")), branch(("Neg", "x", "e"))


@pytest.mark.parametrize(("flag", "op"), [(True, "Relu"), (False, "Neg")])
def test_a_constant_condition_leaves_one_branch(flag: bool, op: str) -> None:
    graph, report = check(FoldIfs(), model(choice("flag", RELU, NEG), weights={"flag": np.array(flag)}), ops=[op])
    assert graph.outputs[0].name == "y"
    assert report.notes[0].text.endswith(f"the condition is {flag}")


def test_a_condition_on_a_fixed_size_is_known() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Gather", "s i", "d"),
        ("Equal", "d four", "c"),
        choice("c", RELU, NEG),
        inputs={"x": ("batch", 4)},
        weights={"i": np.array([1]), "four": np.array([4])},
    )
    graph, _ = check(FoldIfs(), proto)
    assert graph.nodes[-1].op == "Relu"


def test_a_condition_on_an_open_size_stays() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Gather", "s i", "d"),
        ("Equal", "d four", "c"),
        choice("c", RELU, NEG),
        inputs={"x": ("batch", 4)},
        weights={"i": np.array([0]), "four": np.array([4])},
    )
    check_skipped(FoldIfs(), proto, "'c' depends on what the model is fed")


def test_a_condition_on_a_rank_is_known_though_all_sizes_are_open() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Size", "s", "rank"),
        ("Equal", "rank two", "c"),
        ("Not", "c", "n"),
        choice("n", RELU, NEG),
        inputs={"x": ("a", "b")},
        weights={"two": np.int64(2)},
    )
    graph, _ = check(FoldIfs(), proto)
    assert graph.nodes[-1].op == "Neg"


def test_a_condition_that_is_fed_stays() -> None:
    proto = model(choice("flag", RELU, NEG), inputs={"x": (2, 4), "flag": (bool, ())})
    check_skipped(FoldIfs(), proto, "'flag' depends on what the model is fed")


def test_an_if_in_a_branch_that_stays_is_replaced_there() -> None:
    nested = branch(choice("yes", branch(("Relu", "x", "a")), branch(("Exp", "x", "b")), "t"))
    proto = model(
        choice("flag", nested, NEG), inputs={"x": (2, 4), "flag": (bool, ())}, weights={"yes": np.array(True)}
    )
    graph, _ = check(FoldIfs(), proto, ops=["If"])
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Relu"]


def _pair(then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.ModelProto:
    spec = ("If", "flag", "y z", {"then_branch": then, "else_branch": other})
    return model(spec, outputs=["y", "z"], weights={"flag": np.array(True)})


def test_a_branch_that_returns_a_constant_keeps_it_as_an_output() -> None:
    then = graph_proto([("Relu", "x", "t")], {}, ["t", "three"], {"three": np.float32(3)})
    other = graph_proto([("Neg", "x", "e")], {}, ["e", "four"], {"four": np.float32(4)})
    graph, _ = check(FoldIfs(), _pair(then, other), ops=["Relu", "Identity"])
    assert [tensor.name for tensor in graph.outputs] == ["y", "z"]


def test_a_branch_that_returns_one_tensor_twice_gives_it_to_both_outputs() -> None:
    then, other = (graph_proto([(op, "x", out)], {}, [out, out]) for op, out in (("Relu", "t"), ("Neg", "e")))
    graph = to_graph(_pair(then, other))
    FoldIfs()(graph)
    assert [node.op for node in graph.nodes] == ["Relu", "Identity"]
    # Against numpy: ONNX Runtime 1.31 itself gives garbage for the first output of such an If, or does not load it.
    feeds = random_feeds(graph)
    for value in Session(graph).run(feeds).values():
        np.testing.assert_array_equal(value, np.maximum(feeds["x"], 0))


def ranks(*, read: bool) -> onnx.ModelProto:
    """If(c) {squeeze the last of [a, b, c]} else {leave it}, read by an LSTM or by nothing that minds."""
    squeezed = branch(("Squeeze", "x last", "t"))
    behind: list[Spec] = [("Unsqueeze", "q axis", "u"), ("LSTM", "u w r", "_ h", {"hidden_size": 5})]
    tail: list[Spec] = [*behind, ("Identity", "h", "y")] if read else [*behind, ("ReduceSum", "q", "y")]
    return model(
        ("Shape", "x", "s"),
        ("Gather", "s last", "d"),
        ("Equal", "d one", "c"),
        choice("c", squeezed, branch(("Identity", "x", "e")), "q"),
        *tail,
        inputs={"x": ("a", 4, "c")},
        weights={**AXIS, **LSTM, "one": np.array([1])},
    )


def test_a_branch_whose_rank_the_readers_refuse_is_never_taken() -> None:
    proto = ranks(read=True)
    feeds = random_feeds(to_graph(proto), open_dim=1)
    graph, report = check(FoldIfs(), proto, feeds)
    assert Counter(node.op for node in graphs.walk(graph))["If"] == 0
    assert "'q' would have rank 3, and what reads it takes rank 2" in report.notes[0].text


def test_readers_that_no_output_depends_on_demand_nothing() -> None:
    check_skipped(FoldIfs(), ranks(read=False), "'c' depends on what the model is fed")


def test_a_model_without_ifs_is_left_alone() -> None:
    check_untouched(FoldIfs(), model(("Relu", "x", "y")))


def _silero_feeds(rate: int, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(rate + batch)
    return {
        "input": rng.standard_normal((batch, 576 if rate == 16000 else 288), np.float32) / 4,
        "state": rng.standard_normal((2, batch, 128), np.float32) / 4,
        "sr": np.array(rate, np.int64),
    }


def test_of_the_25_ifs_of_a_voice_detector_the_choice_of_the_rate_is_left_and_both_rates_work() -> None:
    loaded = models.load(real.get("silero-vad").path)
    feeds = [_silero_feeds(rate, batch) for rate in (16000, 8000) for batch in (1, 3)]
    before = _outputs(loaded.graph, feeds)
    assert Counter(node.op for node in graphs.walk(loaded.graph))["If"] == 25
    clean_up(parse_target("tensorrt-rtx"))(loaded.graph)
    after = Counter(node.op for node in graphs.walk(loaded.graph))
    assert (after["If"], after["LSTM"], after["MatMul"]) == (1, 0, 4)
    errors = differences(before, _outputs(loaded.graph, feeds))
    assert all(error < 1e-5 for error in errors.values()), errors
    settled = [pass_(loaded.graph) for pass_ in (FoldIfs(), UnrollLSTM(), LoosenSqueeze())]
    assert [report.changed for report in settled] == [0, 0, 0]


def _outputs(graph: Any, feeds: list[dict[str, Any]]) -> dict[str, list[Any]]:
    session = Session(graph)
    runs = [session.run(one) for one in feeds]
    return {name: [run[name] for run in runs] for name in session.outputs}
