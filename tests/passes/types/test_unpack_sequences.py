"""unpack-sequences: what is known of lists of tensors is read without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.passes.base import Skipped
from qcompiler.passes.types.unpack_sequences import UnpackSequences
from tests.kit.rewrite import check, check_skipped, graph_proto, model, to_graph

FEEDS = {"x": np.arange(24, dtype=np.float32).reshape(2, 12)}
TWO = {
    "all": np.array([-1]),
    "i0": np.array(0),
    "i1": np.array(1),
    "last": np.array(-1),
    "five": np.array(5),
    "parts": np.array([5, 7]),
}


def proto(*nodes: Any, shape: Any = (2, 12), **options: Any) -> onnx.ModelProto:
    used = {name for node in nodes for name in node[1].split()}
    return model(*nodes, inputs={"x": shape}, weights={k: v for k, v in TWO.items() if k in used}, opset=17, **options)


def flat(*nodes: Any) -> onnx.ModelProto:
    """With `r` as the result, of whatever shape."""
    return proto(*nodes, ("Reshape", "r all", "y"))


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ((("SplitToSequence", "x parts", "s", {"axis": 1}), ("SequenceAt", "s i1", "r")), ["Split"]),
        ((("SplitToSequence", "x five", "s", {"axis": 1}), ("SequenceAt", "s last", "r")), ["Split"]),
        ((("SplitToSequence", "x", "s", {"axis": 0}), ("SequenceAt", "s i1", "r")), ["Split"]),
        ((("SplitToSequence", "x", "s", {"keepdims": 0}), ("SequenceAt", "s i1", "r")), ["Split", "Squeeze"]),
        (
            (
                ("Neg", "x", "n"),
                ("SequenceConstruct", "x n", "s"),
                ("ConcatFromSequence", "s", "r", {"axis": 1}),
            ),
            ["Neg", "Concat"],
        ),
        (
            (("SequenceConstruct", "x x", "s"), ("ConcatFromSequence", "s", "r", {"axis": 1, "new_axis": 1})),
            ["Unsqueeze", "Unsqueeze", "Concat"],
        ),
        (
            (
                ("Neg", "x", "n"),
                ("SequenceEmpty", "", "e"),
                ("SequenceInsert", "e x", "s1"),
                ("SequenceInsert", "s1 n i0", "s2"),
                ("Identity", "s2", "s3"),
                ("SequenceErase", "s3", "s4"),
                ("SequenceAt", "s4 i0", "r"),
            ),
            ["Neg"],
        ),
    ],
)
def test_what_is_known_is_read_directly(nodes: Any, ops: list[str]) -> None:
    check(UnpackSequences(), flat(*nodes), FEEDS, tolerance=0, ops=[*ops, "Reshape"])


def test_a_length_is_a_number_and_an_output_keeps_a_node_of_its_own() -> None:
    body = proto(("SequenceConstruct", "x x x", "s"), ("SequenceLength", "s", "y"))
    body.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, []))
    graph = to_graph(body)
    (note,) = UnpackSequences()(graph).notes
    assert "SequenceLength removed" in note.text
    (left,) = graph.nodes
    assert (left.op, left.inputs[0].values, left.outputs[0].name) == ("Identity", 3, "y")


def test_a_sequence_that_is_read_otherwise_too_stays() -> None:
    """Its length in the data is not known here, and the part in front is read by both."""
    nodes = (
        ("SplitToSequence", "x parts", "s", {"axis": 1}),
        ("SequenceAt", "s i0", "y"),
        ("SequenceAt", "s where", "z"),
    )
    body = proto(*nodes, outputs=("y", "z"))
    body.graph.input.append(helper.make_tensor_value_info("where", TensorProto.INT64, []))
    feeds = {**FEEDS, "where": np.array(1)}
    _, report = check(UnpackSequences(), body, feeds, tolerance=0, ops=["Split", "SplitToSequence", "SequenceAt"])
    assert [note.node for note in report.notes if isinstance(note, Skipped)] == ["Z"]


def test_an_axis_of_open_size_is_left_alone() -> None:
    nodes = (("SplitToSequence", "x five", "s", {"axis": 1}), ("SequenceAt", "s i0", "y"))
    check_skipped(UnpackSequences(), proto(*nodes, shape=(2, "n")), "depends on the data")


def test_an_optional_that_is_there_is_what_it_holds() -> None:
    nodes = (("Optional", "x", "o"), ("OptionalGetElement", "o", "e"), ("Neg", "e", "y"))
    body = graph_proto(nodes, {"x": (2, 12)}, ["y"])
    whole = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    whole.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 12]))
    check(UnpackSequences(), whole, FEEDS, tolerance=0, ops=["Neg"])


def test_a_sequence_that_is_fed_stays() -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 4])
    body = graph_proto((("ConcatFromSequence", "s", "y", {"axis": 0}),), {}, ["y"])
    body.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(element)))
    graph = to_graph(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (note,) = UnpackSequences()(graph).notes
    assert isinstance(note, Skipped)


def test_an_old_opset_is_left_alone() -> None:
    nodes = (("SplitToSequence", "x", "s", {"axis": 0}), ("SequenceAt", "s i1", "y"))
    old = model(*nodes, inputs={"x": (2, 12)}, weights={"i1": np.array(1)}, opset=12)
    assert UnpackSequences()(to_graph(old)).notes == ()
