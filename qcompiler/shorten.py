"""Shorter samples for measurements that are made often: the beginning of the text, the corner of the picture.

What a layer's noise does to the outputs shows on 64 tokens as well as on 512, and a large model has a hundred layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import graph as graphs
from qcompiler.session import Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 32  # elements that stay of a dimension


def shorten(graph: gs.Graph, feeds: Sequence[Feeds], share: float) -> list[Feeds]:
    """Feeds with only the first part of their longest free dimension; as they are where there is none to shorten.

    A dimension is free if the model gives it a name; inputs that have the same name in several places, such as token
    ids and their mask, are shortened alike.

    Args:
        graph: its inputs' shapes.
        feeds: samples, at least one.
        share: how much of the dimension stays, 0..1; never less than `LEAST` elements.
    """
    shapes = {tensor.name: graphs.shape_of(tensor) or () for tensor in graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(shape, np.shape(feeds[0].get(name, ())), strict=False):
            if isinstance(dim, str):
                sizes[dim] = max(sizes.get(dim, 0), size)
    if not sizes:
        return list(feeds)
    longest = max(sizes, key=lambda dim: sizes[dim])
    kept = max(LEAST, math.ceil(sizes[longest] * share))
    return [{name: _cut(array, shapes.get(name, ()), longest, kept) for name, array in feed.items()} for feed in feeds]


def _cut(array: NDArray[Any], shape: Sequence[int | str | None], dim: str, kept: int) -> NDArray[Any]:
    if len(shape) != np.ndim(array):
        return array
    return array[tuple(slice(kept) if one == dim else slice(None) for one in shape)]
