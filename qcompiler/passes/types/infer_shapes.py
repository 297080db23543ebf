"""x: ? → Conv → y: 1×8×?×?  ⇒  x: n×3×h×w → Conv → y: n×8×?×?, whatever the file says of the tensors between.

Most exporters write no shapes but those of inputs and outputs, and some write those of another batch. A pass that asks
for a rank or a channel axis would do nothing for the first, and something wrong for the second.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import graphs, is_constant, shape_of, tensors
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.runtime import shapes

Dims = Sequence[int | str | None]


@dataclass(frozen=True)
class InferShapes(Pass):
    """Find shape and element type of every tensor by inference; what the file says of inner tensors is not believed.

    The types of inputs and outputs and the shapes of inputs are the model's interface and stay.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per tensor of which the file said what does not hold, and one per tensor of unknown type."""
        said = _known(graph)
        unknown = shapes.infer(graph)
        found = _known(graph)
        free = {dim for tensor in graph.inputs for dim in shape_of(tensor) or () if isinstance(dim, str)}
        for name, dims in said.items():
            if name in found and _contradict(dims, found[name], free):
                yield Changed(name, f"has shape {_spell(found[name])}, not {_spell(dims)} as the file says")
        for name in unknown:
            yield Skipped(name, "ONNX's inference does not know what its node gives: its type and shape are unknown")


def _known(graph: gs.Graph) -> Mapping[str, Dims]:
    """Shapes of computed tensors by name, nested graphs included."""
    every = (tensor for inner in graphs(graph) for tensor in tensors(inner) if not is_constant(tensor))
    return {tensor.name: shape for tensor in every if tensor.name and (shape := shape_of(tensor)) is not None}


def _contradict(said: Dims, found: Dims, free: Collection[str]) -> bool:
    """Whether the file fixed what is not so: another rank, another size, or one that an input leaves free."""
    if len(said) != len(found):
        return True
    pairs = zip(said, found, strict=True)
    return any(
        isinstance(old, int) and (new in free if isinstance(new, str) else new not in (old, None)) for old, new in pairs
    )


def _spell(shape: Dims) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
