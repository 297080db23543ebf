"""Initializers with the same numbers become one: DQ(W₈), DQ(W₈')  ⇒  DQ(W₈), DQ(W₈) where W₈ = W₈'.

Every linear node has a weight of its own while it is decided how each is quantized. What is quantized alike in the end,
the steps of a recurrent layer that was written out or layers that share a weight, is stored once. The nodes stay apart:
compilers fuse a DequantizeLinear into the one product that reads it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Changed, Fact, Note, Pass

_SMALL = 64  # elements; what is smaller is not worth a hash, and scales of their own are easier to read


@dataclass(frozen=True)
class ShareConstants(Pass):
    """Store initializers of the main graph that hold the same numbers once."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per initializer that another one stands for."""
        first: dict[tuple[object, ...], gs.Constant] = {}
        forms = Counter(_form(tensor) for tensor in graphs.tensors(graph) if _worth(tensor))
        for node in graph.nodes:
            for index, tensor in enumerate(node.inputs):
                if not _worth(tensor) or forms[_form(tensor)] < 2:  # weights of a form of their own are not read
                    continue
                kept = first.setdefault(_content(tensor), tensor)
                if kept is not tensor:
                    edit.set_input(node, index, kept)
                    yield Changed(node.name, f"reads '{kept.name}' instead of '{tensor.name}', which held the same")


def _worth(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant) or isinstance(tensor._values, LazyValues):
        return False
    return int(np.prod(tensor.shape)) > _SMALL and graphs.dtype_of(tensor) != np.dtype(object)


def _form(tensor: gs.Constant) -> tuple[object, ...]:
    return str(graphs.dtype_of(tensor)), tuple(tensor.shape)


def _content(tensor: gs.Constant) -> tuple[object, ...]:
    values = np.ascontiguousarray(graphs.values_of(tensor))
    digest = hashlib.blake2b(values.view(np.uint8).data, digest_size=32).digest()
    return *_form(tensor), digest
