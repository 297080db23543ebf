"""Feeds that nobody gave: made up from the inputs of a model, and real ones in other sizes.

They say nothing of accuracy. They show whether a rewritten graph computes what the model computes, also without data
and in sizes that the data does not have. Axes that have one name have one size; axes without a name that have one size
keep together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler.errors import DataError, ModelError
from qcompiler.ir.signature import Array, Feeds, Inputs
from qcompiler.runtime.stream import OpenModel
from qcompiler.runtime.token_feeds import Filler

_TOKENS = 8  # of a text
_SIZES = ((16, 64), (8, 224), (64, 256), (4, 32))  # of free axes that are no batch: of up to three axes, of more
_SUM = " + "

Shape = tuple[int | str | None, ...]


def made_up(inputs: Inputs) -> Iterator[Feeds]:
    """Feeds that the model may take, the likeliest first.

    Of language models ids, mask, positions and an empty cache; else normal or positive floats, ones for integers and
    truth values; in one of several sizes.

    Args:
        inputs: name to dtype and shape (int for a fixed size, text or None for a free one).

    Raises:
        DataError: an input is no tensor, so that none can be made.
    """
    for name, (dtype, _) in inputs.items():
        if dtype is None:
            raise DataError(f"input '{name}' takes a sequence or an optional value, which cannot be made up")
    try:
        filler = Filler(inputs)
        length = filler.length or _TOKENS
        yield filler.feed([[1 + (row + at) % 7 for at in range(length)] for row in range(filler.rows)])
    except DataError:
        pass  # no language model
    free = any(_is_free(size) for _, shape in inputs.values() for size in shape or ())
    for flat, deep in _SIZES if free else _SIZES[:1]:
        for real in (_as_drawn, np.abs):
            yield _filled(inputs, flat, deep, real)


def in_other_sizes(feed: Feeds, inputs: Inputs) -> Iterator[Feeds]:
    """The feed with every free axis in another size, the likeliest to run first; nothing where no axis is free.

    Elements are repeated or left out, so that they stay what the model takes. A size of 0 stays.

    Args:
        feed: one that the model takes.
        inputs: as of `made_up`.
    """
    known: dict[Hashable, int] = {}
    first: set[Hashable] = set()
    for name, (_, shape) in inputs.items():
        for axis, (size, found) in enumerate(zip(shape or (), np.shape(feed[name]), strict=False)):
            if _is_free(size) and _parts(size) is None:
                known.setdefault(_key(size, found), found)
                if axis == 0:
                    first.add(_key(size, found))
    changes = ((_halved, known.keys()), (_doubled, known.keys()), (_doubled, first), (_doubled, known.keys() - first))
    tried = [known]
    for change, among in changes:
        sizes = {key: change(size) if key in among else size for key, size in known.items()}
        if sizes not in tried:
            tried.append(sizes)
            yield {name: _resized(np.asarray(array), inputs[name][1], sizes) for name, array in feed.items()}


def first_that_runs(model: OpenModel, feeds: Iterable[Feeds]) -> tuple[Feeds | None, str]:
    """The first feed that the model runs on and gives numbers for; None, and why the first one did not, where none is.

    Args:
        model: ready to run.
        feeds: to be tried, in order.
    """
    why = ""
    try:
        for feed in feeds:
            try:
                outputs = model.run(feed)
            except (DataError, ModelError) as error:
                why = why or str(error)
                continue
            if all(_has_numbers(value) for value in outputs.values()):
                return feed, ""
            why = why or "an output has nothing but NaN"
    except DataError as error:  # of `made_up`
        why = str(error)
    return None, why


def _has_numbers(value: Any) -> bool:
    return (
        not isinstance(value, np.ndarray)
        or value.dtype.kind != "f"
        or not value.size
        or not bool(np.isnan(value).all())
    )


def _is_free(size: int | str | None) -> bool:
    return not isinstance(size, int) or size < 0


def _parts(size: int | str | None) -> list[str] | None:
    """The summands of an axis that is named like "past + sequence"; None where it is no sum."""
    return size.split(_SUM) if isinstance(size, str) and _SUM in size else None


def _key(size: int | str | None, found: int) -> Hashable:
    """What an axis is known by: its name, or its size where it has none that tells it from others."""
    return size if isinstance(size, str) and re.fullmatch(r"\w+", size) else (None, found)


def _filled(inputs: Inputs, flat: int, deep: int, real: Callable[[Array], Array]) -> Feeds:
    """Numbers for every input. A batch, which stands in front, is 1; other free axes go by the rank."""
    sizes: dict[Hashable, int] = {}
    for _, shape in inputs.values():  # a name that stands in front somewhere is a batch everywhere
        sizes.update((size, 1) for size in (shape or ())[:1] if _is_free(size))
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for name, (dtype, shape) in inputs.items():
        free = deep if len(shape or ()) > 3 else flat
        dims = []
        for axis, size in enumerate(shape or ()):
            if not _is_free(size):
                dims.append(int(size or 0))
            elif size is None:
                dims.append(free if axis else 1)
            elif _parts(size) is None:
                dims.append(sizes.setdefault(size, free))
            else:
                dims.append(0)  # below, when its parts are known
        feeds[name] = _values(rng, np.dtype(dtype), dims, real)
    for name, (dtype, shape) in inputs.items():
        if any(_parts(size) is not None for size in shape or ()):
            dims = [_summed(size, sizes, found) for size, found in zip(shape or (), feeds[name].shape, strict=True)]
            feeds[name] = _values(rng, np.dtype(dtype), dims, real)
    return feeds


def _as_drawn(values: Array) -> Array:
    return values


def _summed(size: int | str | None, sizes: Mapping[Hashable, int], found: int) -> int:
    """The size of an axis, which is a sum where its parts are known, else what was found."""
    parts = _parts(size)
    if parts is None or not all(one.isdigit() or one in sizes for one in parts):
        return found
    return sum(int(one) if one.isdigit() else sizes[one] for one in parts)


def _values(rng: np.random.Generator, dtype: np.dtype[Any], dims: list[int], real: Callable[[Array], Array]) -> Array:
    if dtype.kind == "O":
        return np.full(dims, "text", object)
    if dtype.name.startswith(("float", "bfloat")):
        return real(rng.standard_normal(dims, np.float32)).astype(dtype)
    return np.ones(dims, dtype)


def _doubled(size: int) -> int:
    return 2 * size


def _halved(size: int) -> int:
    return size // 2 if size >= 4 and size % 2 == 0 else 2 * size


def _resized(array: Array, shape: Shape | None, sizes: Mapping[Hashable, int]) -> Array:
    for axis, (size, found) in enumerate(zip(shape or (), array.shape, strict=False)):
        if not _is_free(size) or not found:
            continue
        new = _summed(size, sizes, found) if _parts(size) is not None else sizes.get(_key(size, found), found)
        if new != found:
            array = np.take(array, np.arange(new) % found, axis)
    return array
