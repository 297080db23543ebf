"""Nodes that choose between two branches, on the level of protobuf: one session then answers for many variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def choice(
    switch: str, own: str, output: str, then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto]
) -> onnx.NodeProto:
    """An If that gives what the last node of `then` writes where `switch` is true, else that of `other`.

    Args:
        switch: a bool scalar.
        own: a prefix for names that nobody else uses.
        output: what it writes.
        then: nodes of one branch; they may read anything of the graph around.
        other: nodes of the other branch.
    """
    made = node("If", [switch], [output], name=own + "If")
    made.attribute.append(_body("then_branch", _branch(own + "then", then)))
    made.attribute.append(_body("else_branch", _branch(own + "else", other)))
    return made


def alternatives(
    switch: str,
    own: str,
    outputs: Mapping[str, int],
    then: tuple[Sequence[onnx.NodeProto], Sequence[str]],
    other: tuple[Sequence[onnx.NodeProto], Sequence[str]],
) -> onnx.NodeProto:
    """`choice` for several outputs.

    Args:
        switch: a bool scalar.
        own: a prefix for names that nobody else uses.
        outputs: what it writes, each with its element type.
        then: the nodes of one branch, and which of their tensors become the outputs.
        other: the same of the other branch.
    """
    made = node("If", [switch], list(outputs), name=own + "If")
    for name, (nodes, ends) in (("then_branch", then), ("else_branch", other)):
        branch = onnx.GraphProto(name=own + name, node=nodes)
        branch.output.extend(value_info(end, element) for end, element in zip(ends, outputs.values(), strict=True))
        made.attribute.append(_body(name, branch))
    return made


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "") -> onnx.NodeProto:
    """A node without attributes."""
    return onnx.NodeProto(op_type=op, input=inputs, output=outputs, name=name)


def value_info(name: str, element: int, *, scalar: bool = False) -> onnx.ValueInfoProto:
    """A graph input or output of an element type, without a shape or with that of a scalar."""
    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = element
    if scalar:
        value.type.tensor_type.shape.SetInParent()
    return value


def _branch(name: str, nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
    branch = onnx.GraphProto(name=name, node=nodes)
    branch.output.append(value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT))
    return branch


def _body(name: str, graph: onnx.GraphProto) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, g=graph, type=onnx.AttributeProto.GRAPH)
