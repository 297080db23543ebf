from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.graph import graphs
from qcompiler.passes.base import Changed
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime.stream import OpenModel
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model, to_graph

CUBE = {"x": (2, 4, 6)}


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize(
    ("start", "spec", "ops"),
    [
        pytest.param(11, ("Squeeze", "x", "y", {"axes": [0]}), ["Squeeze"], id="axes of Squeeze become an input"),
        pytest.param(11, ("Unsqueeze", "x", "y", {"axes": [1]}), ["Unsqueeze"], id="axes of Unsqueeze"),
        pytest.param(12, ("ReduceSum", "x", "y", {"axes": [2]}), ["ReduceSum"], id="axes of ReduceSum"),
        pytest.param(
            13, ("ReduceMean", "x", "y", {"axes": [1], "keepdims": 0}), ["ReduceMean"], id="axes of ReduceMean"
        ),
        pytest.param(11, ("Softmax", "x", "y", {"axis": 2}), ["Softmax"], id="Softmax over the last axis"),
        pytest.param(9, ("Clip", "x", "y", {"min": 0.0, "max": 0.5}), ["Clip"], id="limits of Clip become inputs"),
        pytest.param(9, ("Slice", "x", "y", {"starts": [1], "ends": [3], "axes": [2]}), ["Slice"], id="Slice"),
        pytest.param(10, ("Pad", "x", "y", {"pads": [0, 0, 1, 0, 0, 1]}), ["Pad"], id="widths of Pad"),
        pytest.param(10, ("Dropout", "x", "y"), ["Dropout"], id="Dropout"),
        pytest.param(7, ("Relu", "x", "y"), ["Relu"], id="an operator that only took more types"),
    ],
)
def test_written_in_the_new_way(start: int, spec: Any, ops: list[str], opset: int) -> None:
    inputs = {"x": (1, 4, 6)} if spec[0] == "Squeeze" else CUBE
    graph, report = check(RaiseOpset(opset), model(spec, inputs=inputs, opset=start), ops=ops)
    assert graph.opset == opset
    assert report.notes[-1].text == f"opset {start} raised to {opset}"


def test_softmax_over_the_middle_of_old_opsets_meant_all_axes_from_there_on() -> None:
    graph, _ = check(RaiseOpset(21), model(("Softmax", "x", "y", {"axis": 1}), inputs=CUBE, opset=11))
    assert "Softmax" in [node.op for node in graph.nodes]


def test_nodes_in_branches_are_converted_too() -> None:
    then = graph_proto([("ReduceMean", "x", "t", {"axes": [1]})], {}, ["t"])
    other = graph_proto([("ReduceMax", "x", "o", {"axes": [1]})], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={**CUBE, "flag": (bool, ())}, opset=16
    )
    graph, report = check(RaiseOpset(21), proto, ops=["If"])
    assert report.changed == 3
    assert {inner.opset for inner in graphs(graph)} == {21}


def test_names_stay_and_weights_are_not_copied() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto = model(
        ("MatMul", "x w", "a"),
        ("ReduceSum", "a", "y", {"axes": [0]}),
        inputs={"x": (2, 64)},
        opset=12,
        weights={"w": weight},
    )
    graph = to_graph(proto)
    held = graph.nodes[0].inputs[1]
    RaiseOpset(21)(graph)
    assert [node.name for node in graph.nodes] == ["A", "Y"]
    assert graph.nodes[0].inputs[1] is held


def test_other_domains_pass_through() -> None:
    proto = model(("Secret", "x", "a", {}, "com.acme"), ("Relu", "a", "y"), opset=12, domains=["com.acme"])
    graph = to_graph(proto)
    report = RaiseOpset(21)(graph)
    assert [note.node for note in report.notes if isinstance(note, Changed)] == ["main"]
    assert {(one.domain, one.version) for one in graph.import_domains} == {("", 21), ("com.acme", 1)}


def test_the_result_is_the_same_on_every_run() -> None:
    def names() -> list[str]:
        graph = to_graph(model(("Softmax", "x", "y", {"axis": 1}), inputs=CUBE, opset=11))
        RaiseOpset(21)(graph)
        return [name for node in graph.nodes for name in (node.name, *(t.name for t in node.inputs))]

    assert names() == names()


def test_a_newer_model_stays_as_it_is() -> None:
    check_untouched(RaiseOpset(21), model(("Relu", "x", "y"), opset=22))


def test_what_has_no_word_in_the_new_opset_is_refused_by_name() -> None:
    proto = model(("Relu", "x", "y"), opset=10)
    graph = to_graph(proto)
    graph.nodes[0].op = "Gelu"  # of opset 20: what a node of opset 10 means by it, nobody knows
    with pytest.raises(ModelError, match=r"node 'Y' \(Gelu\) cannot be taken from opset 10 to 21.* no such operator"):
        RaiseOpset(21)(graph)


def test_plugins_pass_through() -> None:
    proto = model(("Relu", "x", "a"), ("EfficientNMS_TRT", "a", "y"), opset=10)
    graph = to_graph(proto)
    RaiseOpset(21)(graph)
    assert [node.op for node in graph.nodes] == ["Relu", "EfficientNMS_TRT"]


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        (("RandomNormalLike", "x", "e"), {"x": ("n", 4)}),
        (("RoiAlign", "x r b", "e"), {"x": (1, 2, 8, 8), "r": ("k", 4), "b": (np.int64, ("k",))}),
        (("GlobalLpPool", "x", "e"), {"x": (1, 2, 8, 8)}),
        (("MaxRoiPool", "x r", "e", {"pooled_shape": [2, 2]}), {"x": (1, 2, 8, 8), "r": ("k", 5)}),
    ],
)
def test_the_opset_is_one_that_onnx_runtime_runs(spec: Any, inputs: Any) -> None:
    proto = model(spec, ("Relu", "e", "y"), inputs=inputs, opset=16)
    graph = to_graph(proto)
    report = RaiseOpset(23)(graph)
    assert graph.opset == 21
    assert report.notes[-1].text == (
        f"opset 16 raised to 21: ONNX Runtime has no kernel for {spec[0]} ('E') of opset 23"
    )
    OpenModel(graph, draw=None)


def test_nodes_in_branches_hold_the_opset_too() -> None:
    then = graph_proto([("RandomNormalLike", "x", "t")], {}, ["t"])
    other = graph_proto([("Relu", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={**CUBE, "flag": (bool, ())}, opset=21
    )
    check_skipped(RaiseOpset(23), proto, "opset 21 stays: ONNX Runtime has no kernel for RandomNormalLike")


def test_what_onnx_runtime_does_not_run_now_holds_nothing_back() -> None:
    proto = model(("Secret", "x", "a", {}, "com.acme"), ("Cast", "a", "y", {"to": 1}), domains=["com.acme"])
    graph = to_graph(proto)
    RaiseOpset(23)(graph)
    assert graph.opset == 23


def test_what_onnx_never_had_in_its_domain_is_left_to_others() -> None:
    """Optimisers put their operators there, and so do plugins of TensorRT."""
    spec = ("EfficientNMS_TRT", "x x", "n b s c", {"max_output_boxes": 3})
    graph = to_graph(model(spec, ("ReduceMean", "s", "y", {"axes": [1]}), inputs=CUBE, opset=13))
    report = RaiseOpset(21)(graph)
    assert (graph.opset, [node.op for node in graph.nodes]) == (21, ["EfficientNMS_TRT", "ReduceMean"])
    assert report.changed == 2
