"""Observed ranges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import DataError
from qcompiler.runtime import stream
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.statistics.ranges import Range, Ranges
from tests.kit.rewrite import graph_proto, model, to_graph, whole

ROOT = Path(__file__).parents[2]


def test_ranges_cover_every_float_tensor_over_all_feeds() -> None:
    graph = to_graph(model(("Mul", "x two", "m"), ("Relu", "m", "y"), weights={"two": np.float32(2)}))
    feeds = [{"x": np.full((2, 4), value, np.float32)} for value in (-3.0, 1.0, 5.0)]
    found = ranges.measure(graph, feeds)
    assert dict(found) == {"x": Range(-3, 5), "m": Range(-6, 10), "y": Range(0, 10)}


def test_each_end_knows_the_first_sample_that_has_it() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    feeds = [{"x": np.full((2, 4), value, np.float32)} for value in (1.0, 5.0, -3.0, 5.0, np.nan, -3.0)]
    found = ranges.measure(graph, feeds)
    assert (found["x"].low_at, found["x"].high_at) == (2, 1)
    assert (found["y"].low_at, found["y"].high_at) == (2, 1)
    both = Range(-3, 5, 2, 1) | Range(-4, 4, 8, 9)
    assert (both, both.low_at, both.high_at) == (Range(-4, 5), 8, 1)


def test_measuring_leaves_the_graph_as_it_was() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    before = whole(graph).SerializeToString(deterministic=True)
    ranges.measure(graph, [{"x": np.ones((2, 4), np.float32)}])
    assert whole(graph).SerializeToString(deterministic=True) == before


def test_integers_are_not_observed_and_infinities_are() -> None:
    graph = to_graph(
        model(
            ("Shape", "x", "s"),
            ("Cast", "s", "f", {"to": 1}),
            ("ReduceMax", "f", "top", {"keepdims": 0}),
            ("Div", "top zero", "r"),
            ("Add", "x r", "y"),
            weights={"zero": np.float32(0)},
        )
    )
    found = ranges.measure(graph, [{"x": np.ones((2, 4), np.float32)}])
    assert "s" not in found
    assert found["f"] == Range(2, 4)
    assert found["r"] == Range(np.inf, np.inf)


def test_a_tensor_that_was_always_empty_is_unknown() -> None:
    graph = to_graph(model(("Relu", "x", "y"), inputs={"x": ("n", 4)}))
    assert dict(ranges.measure(graph, [{"x": np.ones((0, 4), np.float32)}])) == {}
    mixed = ranges.measure(graph, [{"x": np.ones((0, 4), np.float32)}, {"x": np.ones((2, 4), np.float32)}])
    assert mixed["y"] == Range(1, 1)


def branching() -> gs.Graph:
    then = graph_proto([("Neg", "x", "inside")], {}, ["inside"])
    other = graph_proto([("Exp", "x", "beside")], {}, ["beside"])
    proto = model(
        ("If", "c", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "c": (np.bool_, ())},
    )
    return to_graph(proto)


def test_a_branch_is_observed_where_it_is_taken() -> None:
    yes, no = ({"x": np.full((2, 4), value, np.float32), "c": np.array(value > 1)} for value in (2, 0))
    assert dict(ranges.measure(branching(), [yes])) == {"x": Range(2, 2), "inside": Range(-2, -2), "y": Range(-2, -2)}
    both = ranges.measure(branching(), [yes, no])
    assert (both["inside"], both["beside"], both["y"]) == (Range(-2, -2), Range(1, 1), Range(-2, 1))


def looping() -> gs.Graph:
    """y = x doubled n times; the stack of all steps as well; an If inside that is taken from the second step on."""
    then = graph_proto([("Mul", "d ten", "large")], {}, ["large"])
    other = graph_proto([("Identity", "d", "small")], {}, ["small"])
    body = graph_proto(
        [
            ("Add", "s s", "d"),
            ("Greater", "i zero", "late"),
            ("If", "late", "q", {"then_branch": then, "else_branch": other}),
            ("Identity", "go", "on"),
        ],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "s": (2,)},
        ["on", "d", "q"],
    )
    proto = model(
        ("Loop", "n _ x", "y stack", {"body": body}),
        inputs={"n": (np.int64, ()), "x": (2,)},
        outputs=("y", "stack"),
        weights={"zero": np.int64(0), "ten": np.float32(10)},
    )
    return to_graph(proto)


def test_the_body_of_a_loop_is_observed_over_all_its_steps() -> None:
    found = ranges.measure(looping(), [{"n": np.array(3), "x": np.array([1, -2], np.float32)}])
    assert found["s"] == Range(-8, 4)
    assert found["d"] == Range(-16, 8)
    assert found["large"] == Range(-160, 80)  # steps two and three
    assert found["small"] == Range(-4, 2)


def test_a_body_that_never_ran_is_unknown() -> None:
    found = ranges.measure(looping(), [{"n": np.array(0), "x": np.ones(2, np.float32)}])
    assert set(found) == {"x", "y"}


def test_the_body_of_a_scan_is_observed_also_where_its_outputs_have_axes() -> None:
    body = graph_proto([("Add", "h e", "a"), ("Mul", "a a", "o")], {"h": (3,), "e": (3,)}, ["a", "o"])
    attrs = {"body": body, "num_scan_inputs": 1, "scan_output_axes": [1], "scan_output_directions": [1]}
    proto = model(("Scan", "h0 x", "h o", attrs), inputs={"h0": (3,), "x": (4, 3)}, outputs=("h", "o"))
    for one, shape in zip(proto.graph.output, ((3,), (3, 4)), strict=True):
        one.CopyFrom(onnx.helper.make_tensor_value_info(one.name, 1, shape))
    feed = {"h0": np.zeros(3, np.float32), "x": np.ones((4, 3), np.float32)}
    found = ranges.measure(to_graph(proto), [feed])
    assert (found["a"], found["e"]) == (Range(1, 4), Range(1, 1))
    assert found["o"] == Range(1, 16)


def test_half_precision_tensors_are_observed() -> None:
    proto = model(("Cast", "x", "h", {"to": 10}), ("Relu", "h", "r"), ("Cast", "r", "y", {"to": 1}))
    assert ranges.measure(to_graph(proto), [{"x": np.full((2, 4), 2, np.float32)}])["r"] == Range(2, 2)


def test_a_feed_that_does_not_fit_is_a_data_error() -> None:
    with pytest.raises(DataError, match="ONNX Runtime cannot run"):
        ranges.measure(to_graph(model(("Relu", "x", "y"))), [{"x": np.ones((3, 9, 4), np.float32)}])


def test_a_graph_without_floats_has_no_ranges() -> None:
    proto = model(("Neg", "x", "y"), inputs={"x": (np.int64, (2,))})
    assert len(ranges.measure(to_graph(proto), [{"x": np.ones(2, np.int64)}])) == 0


def test_peak_memory_of_measuring_is_that_of_a_few_tensors() -> None:
    """Taps keep no activation alive: a deep chain of large tensors is measured in a small process."""
    program = """
import re
from pathlib import Path
import numpy as np
from qcompiler.statistics import ranges
from tests.kit.rewrite import model, to_graph
nodes = [("Sigmoid", "x" if i == 0 else f"t{i}", f"t{i + 1}") for i in range(40)]
graph = to_graph(model(*nodes, inputs={"x": (1024, 1024)}, outputs=("t40",)))
small = to_graph(model(*nodes, inputs={"x": (4, 4)}, outputs=("t40",)))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # kB, from exec on
ranges.measure(small, [{"x": np.zeros((4, 4), np.float32)}])
before = peak()
found = ranges.measure(graph, [{"x": np.zeros((1024, 1024), np.float32)}])
after = peak()
assert len(found) == 41
print((after - before) / 1024)
"""
    if sys.platform != "linux":
        pytest.skip("reads the peak of a process from /proc, which only Linux has")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(ran.stdout) < 80  # all 40 tensors together are 160 MB


def test_range_tells_its_distance_from_zero() -> None:
    assert Range(-2, 3).nearest_zero == 0
    assert Range(2, 3).nearest_zero == 2
    assert Range(-3, -1).nearest_zero == 1
    assert Range(-3, 1).absmax == 3
    assert (Range(-1, 0) | Range(2, 3)) == Range(-1, 3)


def test_ranges_are_a_mapping() -> None:
    held = Ranges({"a": Range(0, 1)})
    assert held["a"] == Range(0, 1)
    assert held.get("b") is None
    assert list(held) == ["a"]


def test_a_long_graph_is_measured_in_pieces_with_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [("Sigmoid" if i % 3 else "Neg", f"t{i}" if i else "x", f"t{i + 1}") for i in range(300)]
    graph = to_graph(model(*nodes, ("Add", "x t300", "y"), inputs={"x": (2, 8)}))
    feeds = [{"x": np.random.default_rng(seed).standard_normal((2, 8)).astype(np.float32)} for seed in range(2)]
    whole = ranges.measure(graph, feeds)
    monkeypatch.setattr(ranges, "_BLOCK", 30)
    monkeypatch.setattr(stream, "MOST_NODES", 100)
    opened: list[object] = []

    def counted(*given: Any, **options: Any) -> Any:
        opened.append(given)
        return Session(*given, **options)

    monkeypatch.setattr("qcompiler.runtime.stream.Session", counted)
    assert dict(ranges.measure(graph, feeds).found) == dict(whole.found)
    assert list(ranges.measure(graph, feeds)) == list(whole)
    assert len(opened) > 8


def test_only_the_named_tensors_are_measured_and_what_is_rearranged_is_none_of_them() -> None:
    graph = to_graph(
        model(
            ("Mul", "x two", "m"),
            ("Transpose", "m", "t", {"perm": [1, 0]}),
            ("Relu", "t", "y"),
            weights={"two": np.float32(2)},
        )
    )
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    assert ranges.wanted(graph) == ("x", "m", "y")
    assert list(ranges.measure(graph, [feed])) == ["x", "m", "y"]
    steps: list[int] = []
    assert dict(ranges.measure(graph, [feed, feed], ["m"], quick=False, advance=steps.append)) == {"m": Range(0, 14)}
    assert steps == [1, 1]


def test_what_several_have_seen_is_put_together() -> None:
    graph = to_graph(model(("Mul", "x two", "y"), weights={"two": np.float32(2)}))
    tapped = ranges.Tapped(graph)
    one, other = tapped.accumulator(), tapped.accumulator()
    for seen, value in ((one, -1.0), (other, 3.0)):
        stream.fill(tapped.graph, [seen], [{"x": np.full((2, 4), value, np.float32)}])
    one.merge(other)
    assert dict(tapped.ranges(one)) == {"x": Range(-1, 3), "y": Range(-2, 6)}
    assert [output.name for output in tapped.graph.outputs] == ["y"]
