"""What ONNX says of an operator: which opsets changed its signature."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, ModelProto, NodeProto

Signature = tuple[object, ...]
STANDARD = ("", "ai.onnx")


def schema(op: str, opset: int) -> Any:
    """The definition of a standard operator that is in force in an opset; None where it has none."""
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None


def signature(one: Any) -> Signature:
    """Inputs, outputs, attributes and their defaults; not types."""
    return (
        tuple((value.name, value.option) for value in one.inputs),
        tuple((value.name, value.option) for value in one.outputs),
        tuple(
            (name, value.type, value.required, value.default_value.SerializeToString())
            for name, value in sorted(one.attributes.items())
        ),
        one.deprecated,
    )


@cache
def versions(op: str) -> tuple[int, ...]:
    """The opsets that defined a standard operator, oldest first."""
    found: list[int] = []
    opset = int(onnx.defs.onnx_opset_version())
    while (one := schema(op, opset)) is not None:
        found.append(int(one.since_version))
        opset = found[-1] - 1
    return tuple(reversed(found))


@cache
def changes(op: str) -> tuple[int, ...]:
    """The opsets that gave an operator another signature than the one before."""
    known = versions(op)
    return tuple(
        new for old, new in itertools.pairwise(known) if signature(schema(op, old)) != signature(schema(op, new))
    )


def same_signature(node: gs.Node, old: int, new: int) -> bool:
    """Whether inputs, outputs, attributes and defaults are the same in both opsets, so that only types were added."""
    before, after = schema(node.op, old), schema(node.op, new)
    if before is None or after is None:
        return False
    return before.since_version == after.since_version or signature(before) == signature(after)


def says_the_same(node: NodeProto, old: int, new: int) -> bool:
    """Whether a node as it stands is a node of the other opset, and means the same there.

    That is so where all its attributes, inputs and outputs exist there, and attributes that it leaves out have the same
    default; where there is none of that name, one that does nothing: 0 or an empty text.
    """
    before, after = schema(node.op_type, old), schema(node.op_type, new)
    if before is None or after is None or after.deprecated:
        return False
    if len(node.input) > after.max_input or len(node.output) > after.max_output:
        return False
    given = {one.name for one in node.attribute}
    if given - after.attributes.keys():
        return False
    for name in {*before.attributes, *after.attributes} - given:
        first, second = before.attributes.get(name), after.attributes.get(name)
        if first is not None and second is not None:
            if first.default_value != second.default_value:
                return False
        elif _does_something(first or second):
            return False
    count = max(len(node.input), after.min_input)
    return [one.name for one in before.inputs][:count] == [one.name for one in after.inputs][:count]


def _does_something(attribute: Any) -> bool:
    """Whether leaving out an attribute means something else than not having it."""
    default = attribute.default_value
    return bool(attribute.required or default.i or default.f or default.s or default.ints or default.floats)


def unsaid(proto: ModelProto, opset: int) -> NodeProto | None:
    """The first node, nested graphs included, that an older opset cannot say; None where it says them all."""
    old = next((one.version for one in proto.opset_import if one.domain in STANDARD), 1)
    for node in _walk(proto.graph.node):
        if node.domain not in STANDARD or not versions(node.op_type):
            continue  # of a function or a plugin
        if not says_the_same(node, old, opset):
            return node
    return None


def _walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _walk(attribute.g.node)
