"""Stored weights and tensors behind pairs become float in front of the layers named, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes import text_form
from qcompiler.passes.base import Changed, Fact, Skipped
from qcompiler.passes.legalize.open_stored import OpenStored
from tests.kit import facts
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, newer, op_named, product
from tests.kit.rewrite import Spec, check, check_skipped, check_untouched, graph_proto, model, to_graph

FLOAT = W8.astype(np.float32) * CHANNEL_SCALES
PAIR: tuple[Spec, ...] = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"))
STORED: Spec = ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1})
HELD = {
    "s": f32(0.03),
    "z": np.int8(0),
    "w8": W8,
    "ws": CHANNEL_SCALES,
    "wz": np.zeros(32, np.int8),
    "v": FLOAT,
}
WITHIN = 0.05  # of the largest output: the step of the pair that is gone


def build(*nodes: Spec, outputs: tuple[str, ...] = ("y",), inputs: dict[str, Any] | None = None) -> onnx.ModelProto:
    read = {name for node in nodes for name in node[1].split()}
    held = {name: value for name, value in HELD.items() if name in read}
    return newer(model(*nodes, inputs=inputs or {"x": (4, 32)}, outputs=outputs, weights=held, opset=21))


def values(tensor: Any) -> Any:
    return graphs.values_of(tensor)


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_a_stored_weight_becomes_a_constant_of_the_same_name() -> None:
    graph, report = check(OpenStored(("w",)), build(STORED, ("MatMul", "x w", "y")), ops=["MatMul"])
    weight = op_named(graph, "Y").inputs[1]
    assert (weight.name, weight.dtype) == ("w", np.float32)
    np.testing.assert_array_equal(values(weight), FLOAT)
    assert report.notes == (Changed("W", "stored weight 'w' became its float values"),)


def test_stored_again_with_its_scales_it_has_the_same_integers() -> None:
    graph, _ = check(OpenStored(("w",)), build(STORED, ("MatMul", "x w", "y")))
    np.testing.assert_array_equal(np.rint(values(op_named(graph, "Y").inputs[1]) / CHANNEL_SCALES), W8)


def test_only_what_is_named_is_opened() -> None:
    graph, _ = check(OpenStored(("w",)), product(), ops=["QuantizeLinear", "DequantizeLinear", "MatMul"])
    assert graphs.is_constant(op_named(graph, "Y").inputs[1])
    nodes = (STORED, ("DequantizeLinear", "w8 ws wz", "t", {"axis": 1}), ("MatMul", "x w", "h"), ("MatMul", "h t", "y"))
    check(OpenStored(("t",)), build(*nodes), ops=["DequantizeLinear", "MatMul", "MatMul"])


def test_a_weight_that_two_layers_read_is_one_constant() -> None:
    proto = build(STORED, ("MatMul", "x w", "h"), ("MatMul", "h w", "y"))
    assert facts.verify(Fact.UNSHARED, to_graph(proto)) == []
    graph, _ = check(OpenStored(("w",)), proto, ops=["MatMul", "MatMul"])
    assert op_named(graph, "H").inputs[1] is op_named(graph, "Y").inputs[1]
    assert facts.verify(Fact.UNSHARED, graph) != []  # which is why it is among what the pass breaks
    assert Fact.UNSHARED in OpenStored.breaks


def test_nodes_between_weight_and_layer_stay_though_they_could_be_folded() -> None:
    nodes = (("DequantizeLinear", "w8 ws wz", "w", {"axis": 0}), ("Transpose", "w", "t"), ("MatMul", "x t", "y"))
    proto = build(*nodes)
    assert facts.verify(Fact.FOLDED, to_graph(proto)) == []
    graph, _ = check(OpenStored(("w",)), proto, ops=["Transpose", "MatMul"])
    np.testing.assert_array_equal(values(op_named(graph, "T").inputs[0]), (W8.T * CHANNEL_SCALES).T)
    assert facts.verify(Fact.FOLDED, graph) != []  # the Transpose of a constant
    assert Fact.FOLDED in OpenStored.breaks


def test_a_reader_in_a_branch_reads_the_constant_too() -> None:
    branches = {
        "then_branch": graph_proto([("MatMul", "x w", "a")], {}, ["a"]),
        "else_branch": graph_proto([("Relu", "h", "b")], {}, ["b"]),
    }
    nodes = (STORED, ("MatMul", "x w", "h"), ("If", "c", "y", branches))
    proto = build(*nodes, inputs={"x": (4, 32), "c": (np.bool_, ())})
    graph, _ = check(OpenStored(("w",)), proto, ops=["MatMul", "If"])
    inner = next(node for node in graphs.walk(graph) if node.name == "A")
    assert inner.inputs[1] is op_named(graph, "H").inputs[1]


def test_a_weight_in_half_stays_half() -> None:
    held = {"w8": W8, "ws": CHANNEL_SCALES.astype(np.float16), "wz": np.zeros(32, np.int8)}
    inputs = {"x": (np.float16, (4, 32))}
    proto = newer(model(STORED, ("MatMul", "x w", "y"), inputs=inputs, weights=held, opset=21))
    graph, _ = check(OpenStored(("w",)), proto, ops=["MatMul"], tolerance=2e-3)
    assert op_named(graph, "Y").inputs[1].dtype == np.float16


# --- Pairs ------------------------------------------------------------------------------------------------------------


def test_a_node_behind_a_pair_reads_what_the_pair_quantized() -> None:
    graph, report = check(
        OpenStored(pairs=("Y",)), build(*PAIR, ("MatMul", "d v", "y")), ops=["MatMul"], tolerance=WITHIN
    )
    assert op_named(graph, "Y").inputs[0].name == "x"
    assert report.notes == (Changed("Y", "reads 'x' in float"),)


def test_a_pair_stays_for_its_other_readers() -> None:
    proto = build(*PAIR, ("MatMul", "d v", "y"), ("Relu", "d", "r"), outputs=("y", "r"))
    kept = ["QuantizeLinear", "DequantizeLinear", "MatMul", "Relu"]
    graph, _ = check(OpenStored(pairs=("Y",)), proto, ops=kept, tolerance=WITHIN)
    assert (op_named(graph, "Y").inputs[0].name, op_named(graph, "R").inputs[0].name) == ("x", "d")


def test_a_pair_that_the_graph_gives_stays() -> None:
    proto = build(*PAIR, ("MatMul", "d v", "y"), outputs=("y", "d"))
    graph, _ = check(
        OpenStored(pairs=("Y",)), proto, ops=["QuantizeLinear", "DequantizeLinear", "MatMul"], tolerance=WITHIN
    )
    assert [tensor.name for tensor in graph.outputs] == ["y", "d"]


def test_a_quantizer_that_other_layers_read_stays_without_the_way_back() -> None:
    proto = build(
        *PAIR, ("DequantizeLinear", "q s z", "e"), ("MatMul", "d v", "y"), ("Relu", "e", "r"), outputs=("y", "r")
    )
    kept = ["QuantizeLinear", "DequantizeLinear", "MatMul", "Relu"]
    graph, _ = check(OpenStored(pairs=("Y",)), proto, ops=kept, tolerance=WITHIN)
    assert [node.name for node in graph.nodes if node.op == "DequantizeLinear"] == ["E"]


def test_pairs_and_weights_open_together() -> None:
    nodes = (*PAIR, STORED, ("MatMul", "d v", "h"), ("MatMul", "h w", "y"))
    _, report = check(OpenStored(("w",), ("H",)), build(*nodes), ops=["MatMul", "MatMul"], tolerance=WITHIN)
    assert [note.node for note in report.notes] == ["H", "W"]


# --- What stays -------------------------------------------------------------------------------------------------------


def test_nothing_named_is_nothing_done() -> None:
    check_untouched(OpenStored(), product())


@pytest.mark.parametrize(
    ("one", "nodes", "outputs", "why"),
    [
        (OpenStored(("v",)), (STORED, ("MatMul", "x w", "y")), ("y",), "no DequantizeLinear writes it"),
        (OpenStored(("w",)), (STORED, ("MatMul", "x w", "y")), ("y", "w"), "'w' is an output of the graph"),
        (OpenStored(("d",)), (*PAIR, ("MatMul", "d v", "y")), ("y",), "computed at run time"),
        (OpenStored(pairs=("N",)), (*PAIR, ("MatMul", "d v", "y")), ("y",), "there is no such node"),
        (OpenStored(pairs=("Y",)), (STORED, ("MatMul", "x w", "y")), ("y",), "'x' does not come out of a pair"),
        (OpenStored(pairs=("Y",)), (STORED, ("MatMul", "w x", "y")), ("y",), "'w' does not come out of a pair"),
    ],
)
def test_what_cannot_be_opened_stays_and_says_why(
    one: OpenStored, nodes: tuple[Spec, ...], outputs: tuple[str, ...], why: str
) -> None:
    report = check_skipped(one, build(*nodes, outputs=outputs, inputs={"x": (32, 32)}), why)
    assert len(report.notes) == 1


def test_what_is_open_is_told_apart_from_what_never_was() -> None:
    proto = build(*PAIR, STORED, ("MatMul", "d v", "h"), ("MatMul", "h w", "y"))
    graph, again = to_graph(proto), OpenStored(("w",), ("H",))
    again(graph)
    assert again(graph).notes == (
        Skipped("H", "'x' does not come out of a pair"),
        Skipped("w", "no DequantizeLinear writes it"),
    )


def test_its_text_form_reads_back_equal() -> None:
    one = OpenStored(("layer/w", "v"), ("Y",))
    assert str(one) == "open-stored{weights=(layer/w,v),pairs=(Y)}"
    assert text_form.parse(str(one), given=OpenStored.requires).passes == (one,)
