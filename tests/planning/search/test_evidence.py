"""Refusals and warnings by what the data lacks: the rule of each kind, one warning for all of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompiler.data.sights import Sight
from qcompiler.data.source import open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.plan import Candidate
from qcompiler.planning.search.evidence import Evidence, conditions, look, weigh
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import observe
from qcompiler.statistics.points import Points
from tests.kit.memory import crossing
from tests.kit.rewrite import graph_proto, model, to_graph

RNG = np.random.default_rng(5)
LIVE = Histogram.of(RNG.standard_normal(1000).astype(np.float32))
ZERO = Histogram.of(np.zeros(1000, np.float32))
STILL = Sight(16, 96, 0.0, True)
MOVES = Sight(16, 96, None, False)


def weighed(histograms: Mapping[str, Histogram], sights: Mapping[str, Sight], same: Sequence[str] = ()) -> Evidence:
    """x and side each go through two layers and a Relu, and are added."""
    weights = {name: np.ones((4, 4), np.float32) for name in ("w1", "w2", "v1", "v2")}
    graph = to_graph(
        model(
            ("MatMul", "x w1", "a"),
            ("Relu", "a", "b"),
            ("MatMul", "b w2", "c"),
            ("MatMul", "side v1", "d"),
            ("Relu", "d", "e"),
            ("MatMul", "e v2", "f"),
            ("Add", "c f", "y"),
            inputs={"x": ("n", 4), "side": ("n", 4)},
            weights=weights,
        )
    )
    layers = [
        Candidate(name, "MatMul", reads, weight, 1)
        for name, reads, weight in (("A", "x", "w1"), ("C", "b", "w2"), ("D", "side", "v1"), ("F", "e", "v2"))
    ]
    return weigh(graph, layers, histograms, sights, same, samples=16)


def every(**others: Histogram) -> dict[str, Histogram]:
    return {**dict.fromkeys(("x", "b", "side", "e"), LIVE), **others}


def rules(found: Evidence) -> dict[str, str]:
    return {one.node: one.rule for one in found.refused}


def test_nothing_is_said_of_data_that_shows_everything() -> None:
    assert weighed(every(), {"x": MOVES, "side": MOVES}) == Evidence()


def test_what_biases_make_of_a_zero_input_is_not_evidence_either() -> None:
    found = weighed(every(side=ZERO), {"x": MOVES, "side": STILL})
    assert rules(found) == {"D": "zero", "F": "constant"}
    assert found.refused[0].why == "'side' was 0 in all 16 calibration samples: no range can be known for it"
    assert found.refused[1].why.startswith("'e' is computed from 'side' alone, which never changed")
    assert len(found.warnings) == 1
    assert "in all 16 calibration samples input 'side' was 0" in found.warnings[0]
    assert "2 layers stay in high precision ('D', 'F')" in found.warnings[0]


def test_an_input_of_one_content_is_named_where_another_one_changes() -> None:
    once = Sight(16, 96, None, True)
    found = weighed(every(), {"x": MOVES, "side": once})
    assert rules(found) == {"D": "constant", "F": "constant"}
    assert "input 'side' was always the same" in found.warnings[0]
    assert weighed(every(), {"x": once, "side": once}) == Evidence()  # one sample, over and over
    positions = Sight(16, 96, None, True, counts=True)
    assert weighed(every(), {"x": MOVES, "side": positions}) == Evidence()


def test_a_zero_input_is_named_also_where_no_layer_is_at_stake() -> None:
    found = weighed({"x": LIVE, "b": LIVE}, {"x": MOVES, "side": STILL})
    assert not found.refused
    assert found.warnings[0].startswith("in all 16 calibration samples input 'side' was 0. All other ranges")


def test_a_dead_branch_is_named_by_the_tensor_that_was_zero() -> None:
    found = weighed(every(e=ZERO), {"x": MOVES, "side": MOVES})
    assert rules(found) == {"F": "zero"}
    assert "in all 16 calibration samples 'e' was 0" in found.warnings[0]


def test_positions_that_are_all_alike_are_no_evidence() -> None:
    found = weighed(every(), {"x": MOVES, "side": MOVES}, same=["e"])
    assert rules(found) == {"F": "constant"}
    assert "'e' had the same values at every position in all 16 calibration samples" in found.refused[0].why


def test_inputs_that_were_always_empty_are_named() -> None:
    hollow = Sight(16, 0, None, same=True)
    (text,) = weighed(every(b=Histogram()), {"x": MOVES, "side": hollow}).warnings
    assert text.startswith(
        "'C' was not reached by any of 16 calibration samples (input 'side' was empty in each of them): nothing is"
    )


def test_too_few_elements_are_told_apart_from_none() -> None:
    few, none = Histogram.of(np.arange(99, dtype=np.float32)), Histogram()
    found = weighed(every(e=few, b=none), {"x": MOVES, "side": MOVES})
    assert rules(found) == {"C": "unseen", "F": "few-elements"}
    assert "'C' was not reached by any of 16 calibration samples" in found.warnings[0]
    assert "'e' held 99 elements in all 16 calibration samples" in found.warnings[1]


def experts(names: Sequence[str], **others: Any) -> tuple[str, ...]:
    """The warnings of layers of that name, none of which was reached."""
    graph = to_graph(model(("Relu", "x", "y")))
    layers = [Candidate(name, "MatMul", f"rows{i}", f"w{i}", 1) for i, name in enumerate(names)]
    histograms = {one.activation: Histogram() for one in layers}
    return weigh(graph, layers, histograms, {"x": MOVES}, samples=64).warnings


def test_experts_that_no_sample_reached_are_counted_by_their_number() -> None:
    (text,) = experts(["/moe/experts.7/up/MatMul", "/moe/experts.7/down/MatMul"])
    assert text.startswith("expert 7 of 'moe' was not reached by any of 64 calibration samples")
    (text,) = experts(["expert_3/up", "expert_3/down", "expert_5/up"])
    assert text.startswith("expert 3, expert 5 were not reached by any of 64 calibration samples")
    (text,) = experts([f"experts.{i}.up" for i in range(9)])
    assert "expert 3 and 5 more were not reached" in text


def test_a_layer_whose_range_came_with_it_needs_no_evidence() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    came = Candidate("M", "MatMul", "x", "w", 1, amax=3.0)
    found = weigh(graph, [came], {"x": ZERO}, {"x": MOVES}, samples=4)
    assert not found.refused


def test_what_nothing_that_is_fed_can_change_is_no_lack_of_the_data() -> None:
    graph = to_graph(
        model(
            ("Shape", "x", "s"),
            ("ConstantOfShape", "s", "state"),
            ("Add", "state b", "steady"),
            ("Add", "x steady", "y"),
            weights={"b": np.ones(4, np.float32)},
        )
    )
    layers = [Candidate("M", "MatMul", "state", "w", 1), Candidate("N", "MatMul", "steady", "v", 1)]
    one = Histogram.of(np.ones(8, np.float32))
    found = weigh(graph, layers, {"state": ZERO, "steady": one}, {"x": MOVES}, samples=4)
    assert rules(found) == {"M": "always-zero"}  # any scale would do: none is needed
    assert found.warnings == ()


def routed(folder: Path, names: Sequence[str]) -> models.Model:
    """Experts in the branches of Ifs, each with a flag of its own."""
    shapes: dict[str, Any] = {"x": (2, 4)}
    nodes = []
    for i, name in enumerate(names):
        shapes[f"flag{i}"] = (np.bool_, ())
        then = graph_proto([("MatMul", "x w", f"t{i}")], {}, [f"t{i}"])
        then.node[0].name = name
        other = graph_proto([("Mul", "x zero", f"e{i}")], {}, [f"e{i}"])
        attrs = {"then_branch": then, "else_branch": other}
        nodes.append(onnx.helper.make_node("If", [f"flag{i}"], [f"o{i}"], name=f"ROUTE{i}", **attrs))
    proto = model(
        ("Relu", "x", "y"),
        inputs=shapes,
        weights={"w": np.ones((4, 4), np.float32), "zero": np.float32(0)},
    )
    proto.graph.node.extend(nodes)
    proto.graph.node.append(onnx.helper.make_node("Sum", ["y0", *(f"o{i}" for i in range(len(names)))], ["y"]))
    proto.graph.node[0].output[0] = "y0"
    onnx.save(proto, folder / "m.onnx")
    return models.load(folder / "m.onnx")


def test_branches_that_no_sample_took_are_named(tmp_path: Path) -> None:
    source = routed(tmp_path, ["experts.0.up", "experts.1.up", "gate"])
    flags = [f"flag{i}" for i in range(3)]
    assert conditions(source.graph) == flags
    inputs = inputs_of(source.graph)
    feeds = [
        {
            "x": np.ones((2, 4), np.float32),
            "flag0": np.array(i == 3),
            "flag1": np.array(False),
            "flag2": np.array(False),
        }
        for i in range(6)
    ]
    seen = observe(source, Points.of(flags=flags), open_source(feeds, inputs), each=crossing)
    assert seen.flags == {"flag0": {True, False}, "flag1": {False}, "flag2": {False}}
    (text,) = look(source, (), seen).warnings
    assert text.startswith("expert 1, the then branch of 'ROUTE2' were not reached by any of 6 calibration samples")
