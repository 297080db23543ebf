"""Shorter samples for measurements that are made often: the beginning of the text, the corner of the picture.

What a layer's noise does to the outputs shows on 64 tokens as well as on 512, and a large model has a hundred layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.fitting import Fitting

if TYPE_CHECKING:
    from numpy.typing import NDArray


LEAST = 32  # elements that stay of a dimension


def shorten(graph: gs.Graph, feeds: Sequence[Feeds], share: float) -> list[Feeds]:
    """Feeds with only the first part of their longest free dimension; as they are where there is none to shorten.

    A dimension is free if the model gives it a name; inputs that have the same name in several places, such as token
    ids and their mask, are shortened alike. So are inputs of whole numbers that are always as long: the mask of a
    decoder with a cache counts the tokens by a name of its own, `past + sequence`. Where the shorter inputs do not fit
    together, or others have indices into what would be cut, such as the edges of a graph, nothing is shortened.

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
    dims = _tied(shapes, feeds, longest)
    short = [{name: _cut(array, shapes.get(name, ()), dims, kept) for name, array in feed.items()} for feed in feeds]
    if any(_points_into(feed, shapes, dims, kept, sizes[longest]) for feed in short):
        return list(feeds)
    others = {dim for shape in shapes.values() for dim in shape[1:] if isinstance(dim, str)} - dims
    if others and Fitting(graph, feeds[0]).misfit({name: np.shape(array) for name, array in short[0].items()}):
        return list(feeds)
    return short


def _points_into(
    feed: Feeds, shapes: Mapping[str, Sequence[int | str | None]], dims: set[str], kept: int, size: int
) -> bool:
    """Whether whole numbers that are not cut themselves are indices of what is cut away, as far as one can tell."""
    for name, array in feed.items():
        if np.asarray(array).dtype.kind not in "iu" or dims.intersection(shapes.get(name, ())):
            continue
        if np.size(array) > 1 and kept <= np.max(array) < size:
            return True
    return False


def _tied(shapes: Mapping[str, Sequence[int | str | None]], feeds: Sequence[Feeds], longest: str) -> set[str]:
    """The longest dimension and, if it counts whole numbers, others of whole numbers that are always as long."""
    lengths: dict[str, list[int]] = {}
    for feed in feeds:
        for name, shape in shapes.items():
            array = np.asarray(feed.get(name, ()))
            if array.dtype.kind in "iub" and array.ndim == len(shape):
                for dim, size in list(zip(shape, array.shape, strict=True))[1:]:
                    if isinstance(dim, str):
                        lengths.setdefault(dim, []).append(size)
    if longest not in lengths:
        return {longest}
    return {dim for dim, found in lengths.items() if set(found) == set(lengths[longest])} | {longest}


def _cut(array: NDArray[Any], shape: Sequence[int | str | None], dims: set[str], kept: int) -> NDArray[Any]:
    if len(shape) != np.ndim(array):
        return array
    return array[tuple(slice(kept) if one in dims else slice(None) for one in shape)]
