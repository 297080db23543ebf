"""Which axis of the inputs is a batch: told, or found by running samples joined and apart.

An axis is a batch if one element along it alone gives what it gives among others. What mixes elements, such as a
maximum over points, a convolution over time or a scan, gives something else alone, and then the axis is none, whatever
it is called. A name such as `batch` only says which axis is tried first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.batches import BatchAxes
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import is_dq, is_q
from qcompiler.ir.signature import Array, Feeds, Inputs, Shape
from qcompiler.runtime.stream import OpenModel
from qcompiler.support.suggest import did_you_mean

Told = Mapping[str, int | None]

LOOKED_AT = 8  # feeds, among which two that can be joined are looked for
BATCH_NAMES = re.compile(r".*batch.*|b|bs|bsz", re.IGNORECASE)
# What comes out is a choice among what goes in: rounding may turn it, so what is chosen among is compared instead
CHOICES = frozenset({"ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"})
# Of the root mean square of a tensor. ONNX Runtime takes other kernels for other sizes, which moves floats by 1e-6 of
# it, halves by 1e-3, and what is rounded to 8 bits by a step; what mixes elements moves it by about all of it.
TOLERANCE, COARSE = 1e-3, 5e-2


def find(graph: gs.Graph, feeds: Iterable[Feeds], inputs: Inputs, told: Told) -> BatchAxes:
    """The axes along which feeds may be cut into samples, and joined.

    Args:
        graph: the model; it is run a few times.
        feeds: the data as it was given; the first few are read.
        inputs: the model's inputs, as in `qcompiler.data.source.open_source`.
        told: the axis of an input, or None for an input that has no batch; inputs that are not named are found out.

    Raises:
        UsageError: `told` names an input or an axis that there is not, or one of a fixed size.
        DataError: as of the data.
    """
    check(told, inputs)
    given = BatchAxes({name: axis for name, axis in told.items() if axis is not None}, "told" if told else "")
    if not any(_is_free(shape) for name, (_, shape) in inputs.items() if name not in told):
        return given
    few = list(itertools.islice(feeds, LOOKED_AT))
    cases = ((candidate, _case(few, candidate)) for candidate in _candidates(few, inputs, told))
    possible = [(candidate, case) for candidate, case in cases if case is not None]
    found = _first(graph, possible)
    return given if found is None else BatchAxes(found.axes, given.how or "run")


def _first(graph: gs.Graph, possible: Sequence[tuple[BatchAxes, tuple[Feeds, int]]]) -> BatchAxes | None:
    """The first of the axes along which samples give alone what they give joined."""
    if not possible:
        return None
    tolerance = COARSE if _is_coarse(graph) else TOLERANCE
    try:
        opened = OpenModel(graph, outputs=_compared(graph), quick=True, optimize=False)
    except ModelError:  # what cannot be run has no samples; whoever runs it next says what is wrong
        return None
    return next((axes for axes, case in possible if _apart(opened, *case, axes, tolerance)), None)


def _is_free(shape: Shape) -> bool:
    return shape is None or any(not isinstance(size, int) for size in shape)


def check(told: Told, inputs: Inputs) -> None:
    """Refuses axes that the model does not have.

    Raises:
        UsageError: an unknown input, an axis that it does not have, or one of a fixed size.
    """
    for name, axis in told.items():
        if name not in inputs:
            raise UsageError(f"batch axis {name}={axis}: the model has no input '{name}': {did_you_mean(name, inputs)}")
        shape = inputs[name][1]
        if axis is None or shape is None:
            continue
        spelled = f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
        if axis >= len(shape):
            raise UsageError(f"batch axis {name}={axis}: '{name}' is {spelled} and has axes 0 to {len(shape) - 1}.")
        if isinstance(shape[axis], int):
            raise UsageError(
                f"batch axis {name}={axis}: the model fixes that axis of '{name}' {spelled}; only a free axis can be "
                "a batch, so export the model with one, or say none."
            )


# --- Candidates -------------------------------------------------------------------------------------------------------


def _candidates(feeds: Sequence[Feeds], inputs: Inputs, told: Told) -> Iterator[BatchAxes]:
    """Axes that may be a batch, the likeliest first; inputs whose axis is told keep it."""
    free = {
        name: [axis for axis, size in enumerate(_dims(feeds, name, shape)) if not isinstance(size, int)]
        for name, (dtype, shape) in inputs.items()
        if dtype is not None and name not in told
    }
    given = {name: axis for name, axis in told.items() if axis is not None}
    named = _named(inputs, free)
    likely = [group for name, group in named.items() if BATCH_NAMES.fullmatch(name)]
    first = {name: 0 for name, axes in free.items() if 0 in axes}
    of_names = [group for group in named.values() if set(group.values()) == {0}]
    alone = [{name: 0} for name in first]
    tried: list[dict[str, int]] = []
    for group in ([given] if given else []) + [*likely, first, *of_names, *_alike(feeds, first), *alone]:
        axes = {**group, **given}
        if axes and axes not in tried:
            tried.append(axes)
            yield BatchAxes(axes)


def _dims(feeds: Sequence[Feeds], name: str, shape: Sequence[int | str | None] | None) -> Sequence[int | str | None]:
    """The declared axes of an input; where nothing is declared, as many free ones as its values have."""
    if shape is not None:
        return shape
    return [None] * max((np.ndim(feed[name]) for feed in feeds if name in feed), default=0)


def _named(inputs: Inputs, free: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """By the name of an axis, where the inputs have it; names that an input has twice are left out."""
    found: dict[str, dict[str, int]] = {}
    twice: set[str] = set()
    for name, axes in free.items():
        for axis in axes:
            size = (inputs[name][1] or ())[axis : axis + 1]
            if not size or not isinstance(size[0], str):
                continue
            group = found.setdefault(size[0], {})
            if name in group:
                twice.add(size[0])
            group[name] = axis
    return {name: group for name, group in found.items() if name not in twice}


def _alike(feeds: Sequence[Feeds], first: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Inputs whose axis 0 is equally long in all feeds."""
    groups: dict[tuple[int, ...], dict[str, int]] = {}
    for name in first:
        sizes = tuple(np.shape(feed[name])[0] for feed in feeds if np.ndim(feed.get(name, 0)))
        groups.setdefault(sizes, {})[name] = 0
    yield from groups.values()


def _case(feeds: Sequence[Feeds], axes: BatchAxes) -> tuple[Feeds, int] | None:
    """A feed of several samples along the axes, and how many; None where the data has none and none can be made."""
    several = [(axes.count(feed), feed) for feed in feeds if axes.count(feed) > 1]
    if several:
        count, feed = min(several, key=lambda one: _bytes(one[1]))
        return feed, count
    for one, two in itertools.combinations(feeds, 2):
        if axes.joins(one, two) and not _equal(one, two, axes):
            return axes.joined([one, two]), 2
    for one in feeds:
        other = {name: _altered(value, axes.axes[name]) if name in axes.axes else value for name, value in one.items()}
        if axes.joins(one, other) and not _equal(one, other, axes):
            return axes.joined([one, other]), 2
    return None


def _bytes(feed: Feeds) -> int:
    return sum(value.nbytes for value in feed.values() if isinstance(value, np.ndarray))


def _equal(one: Feeds, two: Feeds, axes: BatchAxes) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in axes.axes)


def _altered(value: Array, batch: int) -> Array:
    """Another sample that is as good: the same read backwards, and where that is the same, halves of its numbers."""
    others = [axis for axis, size in enumerate(value.shape) if axis != batch and size > 1]
    flipped: Array = np.flip(value, others[-1]) if others else value
    if not np.array_equal(flipped, value) or value.dtype.kind != "f":
        return flipped
    return np.asarray(value * value.dtype.type(0.5), value.dtype)


# --- Joined and apart -------------------------------------------------------------------------------------------------


def _compared(graph: gs.Graph) -> list[str]:
    """Tensors that tell: the outputs, and in place of those behind a choice, the floats that are chosen among."""
    chosen = _behind_choices(graph)
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = list(reversed(graph.outputs))
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = graphs.producer(tensor)
        if node is None or (graphs.is_float(tensor) and id(tensor) not in chosen):
            found[tensor.name] = None
            continue
        waiting += [one for one in node.inputs if not graphs.is_constant(one) and one.name]
    fed = {tensor.name for tensor in graph.inputs}
    return [name for name in found if name not in fed] or [tensor.name for tensor in graph.outputs]


def _behind_choices(graph: gs.Graph) -> set[int]:
    """Ids of the tensors that a choice has gone into."""
    found: set[int] = set()
    for node in graph.nodes:
        if node.op in CHOICES or any(id(tensor) in found for tensor in node.inputs):
            found |= {id(tensor) for tensor in node.outputs}
    return found


def _is_coarse(graph: gs.Graph) -> bool:
    """Whether the graph computes in halves or rounds to few bits."""
    if any(is_q(node) or is_dq(node) or "Dynamic" in node.op for node in graph.nodes):
        return True
    types = (graphs.dtype_of(tensor) for tensor in graphs.tensors(graph) if graphs.is_float(tensor))
    return any(dtype is not None and dtype.itemsize < 4 for dtype in types)


def _apart(model: OpenModel, feed: Feeds, count: int, axes: BatchAxes, tolerance: float) -> bool:
    """Whether single samples give what they give in their feed."""
    places = sorted({0, count // 2, count - 1})
    try:
        whole = model.run(feed)
        alone = [model.run(_one(feed, axes, place)) for place in places]
    except (DataError, ModelError):  # sizes that the model does not take: no batch
        return False
    found = [_kind(whole[name], [one[name] for one in alone], places, count, tolerance) for name in model.outputs]
    return all(found) and "parts" in found


def _one(feed: Feeds, axes: BatchAxes, place: int) -> Feeds:
    return axes.take(feed, [place])


def _kind(whole: Any, alone: Sequence[Any], places: Sequence[int], count: int, tolerance: float) -> str:
    """`parts`: along some axis a sample has its part of the whole; `same`: all have the same; empty: neither."""
    if not all(isinstance(one, np.ndarray) and one.ndim == np.ndim(whole) for one in (whole, *alone)):
        return ""
    if any(one.shape != alone[0].shape for one in alone):
        return ""
    scale = _scale(whole) * tolerance
    for axis in range(whole.ndim):
        each = alone[0].shape[axis]
        if whole.shape != (*alone[0].shape[:axis], each * count, *alone[0].shape[axis + 1 :]):
            continue
        parts = (np.take(whole, range(place * each, (place + 1) * each), axis) for place in places)
        if all(_close(part, one, scale) for part, one in zip(parts, alone, strict=True)):
            return "parts"
    same = whole.shape == alone[0].shape and all(_close(whole, one, scale) for one in alone)
    return "same" if same else ""


def _scale(values: Array) -> float:
    if values.dtype.kind not in "fV":
        return 0.0
    wide = values.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    return float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 0.0


def _close(one: Array, two: Array, most: float) -> bool:
    if one.dtype.kind not in "fV":
        return bool(np.array_equal(one, two))
    return bool(np.allclose(one.astype(np.float64), two.astype(np.float64), rtol=0.0, atol=most, equal_nan=True))
