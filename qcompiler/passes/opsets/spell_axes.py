"""Resize, Pad and CenterCropPad that name some axes are told of all of them.

    Resize{axes=[2,3]}(x, scales [2, 2])     ⇒  Resize(x, scales [1, 1, 2, 2])
    Resize{axes=[2,3]}(x, sizes [64, 64])    ⇒  Resize(x, sizes [n, c, 64, 64])
    Pad(x, pads [1, 1], axes [-1])           ⇒  Pad(x, pads [0, 0, 0, 1, 0, 0, 0, 1])

Between quantized convolutions ONNX Runtime moves Transposes through these nodes, and takes the short list for one of
all axes: the graph that it makes then fails in a Gather, or on sizes that nobody gave (1.31; its pull request 21954
keeps one of its two transformers from that).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import constant_value, dtype_of, graphs, is_op, is_present, shape_of, static_shape, walk
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.opsets._place import Place, shorten
from qcompiler.runtime import shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SpellAxes(Pass):
    """Tell Resize, Pad and CenterCropPad of all axes; ONNX Runtime's optimiser breaks their short forms."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node that named some axes."""
        found = [node for node in walk(graph) if _axes(node) is not None]
        if any(node.inputs[0].shape is None for node in found):
            shapes.infer(graph)
        names = Names(graph)
        for inner in graphs(graph) if found else ():
            nodes: list[gs.Node] = []
            for node in list(inner.nodes):
                axes = _axes(node)
                shape = None if axes is None else shape_of(node.inputs[0])
                why = "" if axes is None else _refusal(node, axes, shape)
                if axes is not None and not why and shape is not None:
                    places = [axis % len(shape) for axis in axes]
                    nodes += _spelled(node, places, len(shape), Place(inner, names))
                    yield Changed(node.name, f"{node.op} of axes {places} is told of all {len(shape)}")
                elif why:
                    yield Skipped(node.name, why)
                nodes.append(node)
            if len(nodes) != len(inner.nodes):
                inner.nodes[:] = nodes


def _axes(node: gs.Node) -> Sequence[int] | None:
    """The axes that a node names; an empty list where they are not constant, None where it names none."""
    if is_op(node, "Resize", "CenterCropPad"):
        found = node.attrs.get("axes")
        return None if found is None else [int(axis) for axis in found]
    if not is_op(node, "Pad") or not is_present(node, 3):
        return None
    known = constant_value(node.inputs[3])
    return [] if known is None else [int(axis) for axis in known.reshape(-1)]


def _refusal(node: gs.Node, axes: Sequence[int], shape: Sequence[object] | None) -> str:
    if not axes:
        return "its axes are not constant"
    if shape is None:
        return "the rank of its input is not known"
    if (
        is_op(node, "Resize")
        and is_present(node, 3)
        and node.attrs.get("keep_aspect_ratio_policy", "stretch") != ("stretch")
    ):
        return "it keeps the aspect ratio of the axes that it names"
    return ""


def _spelled(node: gs.Node, axes: Sequence[int], rank: int, place: Place) -> list[gs.Node]:
    """Edits a node; returns the nodes that compute what it reads then, where that is not constant."""
    every = range(rank)
    at = [axes.index(axis) if axis in axes else -1 for axis in every]  # where the value of each axis stands
    node.attrs.pop("axes", None)
    if is_op(node, "Pad"):
        both = [*at, *(-1 if one < 0 else one + len(axes) for one in at)]
        shorten(node, inputs=3 if is_present(node, 2) else 2)
        return _filled(node, 1, both, np.zeros(2 * rank, np.int64), place)
    if is_op(node, "CenterCropPad"):
        return _sized(node, 1, at, place)
    made: list[gs.Node] = []
    if is_present(node, 1) and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        both = [*at, *(-1 if one < 0 else one + len(axes) for one in at)]
        made += _filled(node, 1, both, np.repeat(np.array([0, 1]), rank), place)
    if is_present(node, 3):
        return made + _sized(node, 3, at, place)
    return made + _filled(node, 2, at, np.ones(rank), place)


def _sized(node: gs.Node, index: int, at: Sequence[int], place: Place) -> list[gs.Node]:
    """The sizes that are not given are those of the input."""
    own = static_shape(node.inputs[0])
    if own is not None:
        return _filled(node, index, at, np.array(own, np.int64), place)
    shape = place.node(node, "Shape", [node.inputs[0]], output=place.value(node, "shape", np.int64))
    return [shape, *_joined(node, index, at, shape.outputs[0], range(len(at)), place)]


def _filled(node: gs.Node, index: int, at: Sequence[int], rest: NDArray[Any], place: Place) -> list[gs.Node]:
    """Values for all axes: those that are given, at their places, and `rest`."""
    given = node.inputs[index]
    known, dtype = constant_value(given), dtype_of(given) or np.dtype(np.int64 if index in (1, 3) else np.float32)
    rest = rest.astype(dtype if known is None else known.dtype)
    if known is None:
        return _joined(node, index, at, place.constant(node, "rest", rest), range(len(at)), place)
    flat = known.reshape(-1)
    values = np.array([one if where < 0 else flat[where] for one, where in zip(rest, at, strict=True)], flat.dtype)
    set_input(node, index, place.constant(node, "all_axes", values))
    return []


def _joined(
    node: gs.Node, index: int, at: Sequence[int], rest: gs.Tensor, places: Sequence[int], place: Place
) -> list[gs.Node]:
    """The same, where the values are computed: picked out of `rest` and behind it those that are given."""
    picked = [here if where < 0 else len(at) + where for here, where in zip(places, at, strict=True)]
    joined = place.node(node, "Concat", [rest, node.inputs[index]], {"axis": 0})
    chosen = place.node(node, "Gather", [joined.outputs[0], place.constant(node, "places", np.array(picked, np.int64))])
    set_input(node, index, chosen.outputs[0])
    return [joined, chosen]
