"""Inputs that decide between the branches of an If and had one value in all data: constants, in all likelihood.

Exporters merge a decoder without and with a cache into one file; deployment always takes one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_graphsurgeon as gs

from qcompiler.data.sights import Sight
from qcompiler.ir import graph as graphs

_FAR = 50  # nodes between an input and a condition, at most


def told(graph: gs.Graph, sights: Mapping[str, Sight]) -> Iterator[str]:
    """A sentence for each input that decides alone, or with others like it, which branch is taken.

    Args:
        graph: normalised.
        sights: of the inputs, over all samples.
    """
    deciding: dict[str, list[str]] = {}
    for node in graph.nodes:
        if not graphs.is_op(node, "If"):
            continue
        for name in _decided_by(node.inputs[0]):
            deciding.setdefault(name, []).append(node.name)
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    for name, nodes in deciding.items():
        sight = sights.get(name)
        if sight is None or sight.value is None:
            continue
        value = _spelled(inputs[name], sight.value)
        many = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        yield (
            f"input '{name}' decides which branch of '{nodes[0]}'{many} is taken, and was {value} in all "
            f"{sight.samples} samples: if it always is, --fix-input {name}={value} makes it a constant, and the branch "
            "that is never taken is left out; the data says nothing of that branch"
        )


def _decided_by(condition: gs.Tensor) -> list[str]:
    """The inputs that a condition is computed from; empty where there is anything else, or too much between."""
    waiting, known, found = [condition], {id(condition)}, list[str]()
    while waiting:
        tensor = waiting.pop()
        node = graphs.producer(tensor)
        if node is None and not graphs.is_constant(tensor):
            found.append(tensor.name)
        if len(known) > _FAR or graphs.is_op(node, "Shape", "Size"):  # sizes are no values that can be fixed
            return []
        fresh = [] if node is None else [one for one in node.inputs if one.name and id(one) not in known]
        known.update(map(id, fresh))
        waiting += fresh
    return found


def _spelled(tensor: gs.Tensor, value: float) -> str:
    """A value as --fix-input takes it."""
    dtype = graphs.dtype_of(tensor)
    if dtype is not None and dtype.kind == "b":
        return str(bool(value)).lower()
    return f"{value:g}" if dtype is None or dtype.kind not in "iu" else str(int(value))
