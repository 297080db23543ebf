"""Shapes of tensors at the sizes that an engine serves: by the user's profile, else by that of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data import profiles
from qcompiler.errors import DataError, ModelError
from qcompiler.ir.macs import Shapes
from qcompiler.ir.signature import Feeds, inputs_of
from qcompiler.runtime.fitting import Fitting
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.statistics.observe import Observations

SMALLEST: Final = 0
USUAL: Final = 1
LARGEST: Final = 2
_SEVERAL: Final = 2  # samples


def shapes_at(
    graph: gs.Graph,
    observed: Observations,
    asked: Mapping[str, Sequence[tuple[int, ...]]] | None,
    which: int,
    names: Sequence[str],
) -> Shapes:
    """Shapes of tensors at the smallest, usual or largest shapes of the inputs.

    Args:
        graph: the float graph.
        observed: shapes of the data, with at least one kept feed.
        asked: smallest, usual and largest shape by input, as the user wants them; None for those of the data.
        which: `SMALLEST`, `USUAL` or `LARGEST`.
        names: tensors.

    Raises:
        DataError: the data has no smallest or largest shapes that fit together; the usual ones are those of a feed.
    """
    wanted = {**_of_data(graph, observed, which), **{name: three[which] for name, three in (asked or {}).items()}}
    first = observed.kept[0]
    like = next((feed for feed in observed.kept if _has(feed, wanted)), first)
    feeds = {name: np.resize(array, wanted.get(name, np.shape(array))) for name, array in like.items()}
    if _has(like, wanted):
        return concrete_shapes(graph, like, names)
    try:
        return concrete_shapes(graph, feeds, names)
    except (DataError, ModelError):
        # Where shapes depend on values, values made up for another size need not run: one that was seen does
        return concrete_shapes(graph, first, names)


def shapes_of_many(
    graph: gs.Graph,
    observed: Observations,
    asked: Mapping[str, Sequence[tuple[int, ...]]] | None,
    names: Sequence[str],
) -> Shapes:
    """Shapes of tensors as they may well be served: the usual ones, but a batch that nobody has chosen is several.

    One sample at a time is how data is written, and nobody's choice, where the model leaves that axis free and no
    profile was asked for. What is a matrix-vector product for one sample is a product of matrices for many.

    Args:
        graph: the float graph.
        observed: shapes of the data and its batch axes, with at least one kept feed.
        asked: smallest, usual and largest shape by input, as the user wants them; None for those of the data.
        names: tensors.
    """
    axes, free = observed.axes.axes, inputs_of(graph)
    fixed = any(isinstance((free[name][1] or ())[axis], int) for name, axis in axes.items())
    if not axes or fixed or not axes.keys().isdisjoint(asked or {}):
        return shapes_at(graph, observed, asked, USUAL, names)
    usual = dict(_of_data(graph, observed, USUAL))
    for name, axis in axes.items():
        shape = list(usual.get(name, np.shape(observed.kept[0][name])))
        shape[axis] = max(shape[axis], _SEVERAL)
        usual[name] = tuple(shape)
    three = {name: (shape, shape, shape) for name, shape in usual.items()}
    return shapes_at(graph, observed, {**(asked or {}), **three}, USUAL, names)


def _of_data(graph: gs.Graph, observed: Observations, which: int) -> Mapping[str, tuple[int, ...]]:
    inputs = inputs_of(graph)
    if which == USUAL:
        return profiles.usual(observed.shapes, inputs, observed.axes)
    misfit = Fitting(graph, observed.kept[0]).misfit
    found = profiles.consistent(observed.shapes, inputs, observed.axes, misfit)
    return {name: three[which] for name, three in found.items()}


def _has(feed: Feeds, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    return all(np.shape(feed[name]) == shape for name, shape in wanted.items() if name in feed)
