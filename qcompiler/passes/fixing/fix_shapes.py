"""Free axes of the inputs get the size that they have in deployment; what is computed from them can then be folded.

x: batch×3×height×width  ⇒  x: 1×3×224×224
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.errors import UsageError
from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Changed, Note, Pass
from qcompiler.support.suggest import did_you_mean

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class FixShapes(Pass):
    """Give free axes of the inputs a size.

    Axes that share a name share the size, in inputs and outputs alike.

    Attributes:
        sizes: by the name of an input, all its sizes; or by the name of an axis, its size alone.

    Raises:
        UsageError: there is no such input or axis, an axis has another size already, or two sizes contradict each
            other.
    """

    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per input."""
        if not self.sizes:
            return
        inputs = {tensor.name: graphs.shape_of(tensor) for tensor in graph.inputs}
        named: dict[str, int] = {}
        shapes: dict[str, Dims] = {}
        for name, sizes in self.sizes.items():
            shapes |= _of_one(name, sizes, inputs, named)
        for tensor in graph.inputs:
            before = inputs[tensor.name]
            now = shapes.get(tensor.name, before)
            if now is None:
                continue
            tensor.shape = [named.get(dim, dim) if isinstance(dim, str) else dim for dim in now]
            if graphs.shape_of(tensor) != before:
                yield Changed(tensor.name, f"{_told(before)} is now {_told(graphs.shape_of(tensor))}")
        for tensor in graph.outputs:
            if tensor.shape is not None:
                tensor.shape = [named.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape]


def _of_one(
    name: str, sizes: tuple[int, ...], inputs: Mapping[str, Dims | None], named: dict[str, int]
) -> dict[str, Dims]:
    """The shape that one entry gives an input; fills in the sizes of axes that have names."""
    where = f"--fix-shape {name}={'x'.join(map(str, sizes)) or '()'}"
    axes = {dim for shape in inputs.values() for dim in shape or () if isinstance(dim, str)}
    if name not in inputs and name in axes and len(sizes) == 1:
        _note(name, sizes[0], named, where)
        return {}
    if name not in inputs:
        raise UsageError(
            f"{where}: '{name}' is neither an input nor a free axis with a single size: "
            f"{did_you_mean(name, [*inputs, *sorted(axes)])}"
        )
    shape = inputs[name]
    if shape is not None and (
        len(shape) != len(sizes)
        or any(isinstance(dim, int) and dim != size for dim, size in zip(shape, sizes, strict=True))
    ):
        raise UsageError(f"{where}: the model takes {_told(shape)}, whose fixed sizes cannot change")
    for dim, size in zip(shape or (), sizes, strict=False):
        if isinstance(dim, str):
            _note(dim, size, named, where)
    return {name: sizes}


def _note(axis: str, size: int, named: dict[str, int], where: str) -> None:
    if named.setdefault(axis, size) != size:
        raise UsageError(f"{where}: axis '{axis}' is {named[axis]} already, in another --fix-shape")


def _told(shape: Dims | None) -> str:
    """A shape in a message."""
    if shape is None:
        return "a shape that is not known"
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "a scalar"
