"""Cutting weights out of the wire format loses nothing and touches nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from qcompiler.ir.wire import EMBEDDED, WireError, delimited, fields, strip, varint

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
THRESHOLD = 24


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    values = draw(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
    name = draw(NAMES)
    form = draw(st.sampled_from(["raw", "typed", "external", "twice"]))
    if form == "typed":
        return helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[len(values)])
    tensor.raw_data = np.array(values, np.float32).tobytes()
    if form == "external":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=draw(NAMES))
    return tensor


@st.composite
def graphs(draw: st.DrawFn, depth: int = 2) -> GraphProto:
    graph = GraphProto(name=draw(NAMES), initializer=draw(st.lists(tensors(), max_size=3)))
    for _ in range(draw(st.integers(0, 2))):
        node = NodeProto(op_type=draw(NAMES), name=draw(NAMES), input=draw(st.lists(NAMES, max_size=2)))
        node.attribute.add(name="t", type=AttributeProto.TENSOR, t=draw(tensors()))
        node.attribute.add(name="i", type=AttributeProto.INT, i=draw(st.integers(-(2**63), 2**63 - 1)))
        if depth:
            node.attribute.add(name="g", type=AttributeProto.GRAPH, g=draw(graphs(depth - 1)))
        graph.node.append(node)
    return graph


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    model = ModelProto(ir_version=draw(st.integers(0, 2**40)), producer_name=draw(NAMES), graph=draw(graphs()))
    model.opset_import.add(version=draw(st.integers(0, 30)))
    model.metadata_props.add(key=draw(NAMES), value=draw(NAMES))
    return model


def restored(graph: GraphProto, content: bytes) -> int:
    """Puts the cut weights back; returns how many there were."""
    attributes = [one for node in graph.node for one in node.attribute]
    count = sum(restored(one.g, content) for one in attributes if one.type == AttributeProto.GRAPH)
    for tensor in (*graph.initializer, *(one.t for one in attributes if one.type == AttributeProto.TENSOR)):
        entries = {one.key: one.value for one in tensor.external_data}
        if entries.get("location") != EMBEDDED:
            continue
        offset, length = int(entries["offset"]), int(entries["length"])
        assert length >= THRESHOLD
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = content[offset : offset + length]
        count += 1
    return count


def large(graph: GraphProto) -> int:
    """How many tensors have to be cut."""
    attributes = [one for node in graph.node for one in node.attribute]
    count = sum(large(one.g) for one in attributes if one.type == AttributeProto.GRAPH)
    found = (*graph.initializer, *(one.t for one in attributes if one.type == AttributeProto.TENSOR))
    return count + sum(len(one.raw_data) >= THRESHOLD and not one.external_data for one in found)


@given(models())
def test_what_is_cut_out_is_where_the_note_says_and_all_else_is_as_protobuf_reads_it(model: ModelProto) -> None:
    content = model.SerializeToString()
    stripped = onnx.load_model_from_string(strip(memoryview(content), THRESHOLD))
    assert restored(stripped.graph, content) == large(model.graph)
    assert stripped == model


@given(models(), st.data())
def test_a_model_cut_short_is_refused_or_ends_between_two_fields(model: ModelProto, data: st.DataObject) -> None:
    content = model.SerializeToString()
    end = data.draw(st.integers(0, len(content)))
    borders = {0} | {field.end for field in fields(memoryview(content), 0, len(content))}
    if end in borders:
        strip(memoryview(content[:end]), THRESHOLD)
    else:
        with pytest.raises(WireError):
            strip(memoryview(content[:end]), THRESHOLD)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_a_wire_error(content: bytes) -> None:
    try:
        stripped = strip(memoryview(content), THRESHOLD)
    except WireError:
        return
    assert len(stripped) <= len(content) + 200


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**28))
def test_numbers_read_back(length: int, number: int) -> None:
    head = delimited(number, length)
    assert head == varint(number << 3 | 2) + varint(length)
    if length < 100:
        (field,) = fields(memoryview(head + bytes(length)), 0, len(head) + length)
        assert (field.number, field.value, field.end) == (number, len(head), len(head) + length)


def test_endless_nesting_is_refused_before_python_runs_out_of_stack() -> None:
    inner = b""
    for _ in range(400):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = delimited(number, len(inner)) + inner
    content = delimited(7, len(inner)) + inner
    with pytest.raises(WireError, match="nested more than 100 deep"):
        strip(memoryview(content), 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "more than ten bytes"),
        (b"\x3a\x05abc", "2 bytes behind the end"),
        (b"\x09abc", "behind the end"),
        (b"\x08", "middle of a number"),
    ],
)
def test_a_malformed_field_is_named_by_its_place(content: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        strip(memoryview(content))
