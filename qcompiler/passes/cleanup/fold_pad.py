"""A Pad with zeros before a Conv becomes the Conv's own padding.

Conv(Pad(x, [0,0,1,1, 0,0,1,1]))  ⇒  Conv{pads=[1,1,1,1]}(x)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import detach, remove_nodes, set_input
from qcompiler.ir.graph import constant_value, graphs, is_op, is_output, is_present, producer
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold constant zero padding into the Conv behind it."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per Conv that reads a Pad."""
        for inner in graphs(graph):
            idle: list[gs.Node] = []
            for node in inner.nodes:
                if is_op(node, "Conv"):
                    yield from _fold(inner, node, idle)
            remove_nodes(inner, idle)


def _fold(graph: gs.Graph, conv: gs.Node, idle: list[gs.Node]) -> Iterator[Note]:
    """Takes in one Pad after the other; those that nobody reads any more are added to `idle`."""
    while (pad := producer(conv.inputs[0])) is not None and is_op(pad, "Pad"):
        pads = _spatial_pads(pad, conv)
        if isinstance(pads, str):
            yield Skipped(conv.name, pads)
            return
        own = conv.attrs.get("pads") or [0] * len(pads)
        conv.attrs["pads"] = [int(a) + b for a, b in zip(own, pads, strict=True)]
        conv.attrs.pop("auto_pad", None)
        set_input(conv, 0, pad.inputs[0])
        yield Changed(conv.name, f"pads {conv.attrs['pads']}, with those of '{pad.name}'")
        if not pad.outputs[0].outputs and not is_output(graph, pad.outputs[0]):
            detach(pad)
            idle.append(pad)


def _spatial_pads(pad: gs.Node, conv: gs.Node) -> list[int] | str:
    """What Pad adds to the spatial axes, begins then ends, as Conv lists them; or why it cannot be folded."""
    if pad.attrs.get("mode", "constant") != "constant":
        return f"'{pad.name}' pads with {pad.attrs['mode']} values, not with zeros"
    if conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"its own padding depends on the input (auto_pad={conv.attrs['auto_pad']})"
    value = constant_value(pad.inputs[2]) if is_present(pad, 2) else None
    if pad.attrs.get("value", 0.0) or (is_present(pad, 2) and (value is None or value.any())):
        return f"'{pad.name}' does not pad with zeros"
    widths = pad.attrs.get("pads") if "pads" in pad.attrs else _constant_list(pad, 1)
    if widths is None:
        return f"the widths of '{pad.name}' are not constant"
    return _placed([int(width) for width in widths], pad, len(conv.inputs[1].shape or ()))


def _placed(widths: list[int], pad: gs.Node, rank: int) -> list[int] | str:
    axes = list(range(len(widths) // 2))
    if is_present(pad, 3):
        listed = _constant_list(pad, 3)
        if listed is None:
            return f"the axes of '{pad.name}' are not constant"
        axes = [axis % rank if rank else axis for axis in listed]
    if rank < 3 or any(axis >= rank for axis in axes):
        return "the rank of its weight is not known"
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, widths, widths[len(axes) :], strict=False):
        begins[axis], ends[axis] = begin, end
    if any((*begins[:2], *ends[:2])):
        return f"'{pad.name}' pads batch or channels"
    if min((*begins, *ends)) < 0:
        return f"'{pad.name}' crops"
    return begins[2:] + ends[2:]


def _constant_list(node: gs.Node, index: int) -> list[int] | None:
    value = constant_value(node.inputs[index]) if is_present(node, index) else None
    return None if value is None else [int(one) for one in value.reshape(-1)]
