"""x[?, 3, ?, ?] ⇒ x[x_dim0, 3, x_dim2, x_dim3]: sizes that are free get names that say whether they must be equal.

TensorRT takes two dimensions of one name for one size. Some exporters call every free dimension `?`, and an engine for
batch 8 and width 192 is then refused as a contradiction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Changed, Fact, Note, Pass


@dataclass(frozen=True)
class NameDimensions(Pass):
    """Give every free dimension of an input a name of its own, unless an exporter's name says that some are equal."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per input that got new names."""
        for tensor in graph.inputs:
            shape = graphs.shape_of(tensor)
            if shape is None:
                continue
            spelled = Counter(dim for dim in shape if isinstance(dim, str))
            renamed = tuple(
                f"{tensor.name}_dim{axis}" if _means_nothing(dim, spelled) else dim for axis, dim in enumerate(shape)
            )
            if renamed != shape:
                tensor.shape = list(renamed)
                yield Changed(tensor.name, f"free dimensions are {', '.join(str(dim) for dim in renamed)}")


def _means_nothing(dim: int | str | None, spelled: Counter[str]) -> bool:
    """Whether a free dimension has no name, none that is a word, or one that this input uses twice."""
    if isinstance(dim, int):
        return dim < 0
    return dim is None or not any(c.isalnum() for c in dim) or dim.lstrip("-").isdigit() or spelled[dim] > 1
