"""Feeds made up for smoke tests: noise in the sizes that a model takes, which mean nothing beyond "it runs"."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Feeds, Inputs, inputs_of
from qcompiler.runtime.fitting import Fitting

MOST_TRIALS = 64  # sizes that are held against the graph
LONG = (64, 4096)  # sizes for axes that are no batch although they come first, such as the time of a sound


@dataclass(frozen=True)
class RandomData:
    """Standard normal floats, ones for integers (valid as token ids and masks), the same in every run.

    Attributes:
        sizes: of free axes by their name, where these are not the usual ones: 64 in inputs of more than three axes,
            else 16, and 1 for axis 0.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)

    def feeds(self, inputs: Inputs, count: int) -> Iterator[Feeds]:
        """So many feeds.

        Raises:
            DataError: the model takes a sequence or an optional value.
        """
        rng = np.random.default_rng(0)
        shapes = self._shapes(inputs)
        for _ in range(count):
            yield {name: _made(rng, dtype, shapes[name]) for name, (dtype, _) in inputs.items()}

    def named(self, inputs: Inputs) -> dict[str, int]:
        """The size of each name: the largest that one of its axes has; of "past + sequence" those of its parts."""
        found: dict[str, int] = {}
        for _, dims in inputs.values():
            for dim, size in zip(dims or (), _usual(dims or ()), strict=True):
                if isinstance(dim, str):
                    found[dim] = max(size, found.get(dim, 0))
        found.update(self.sizes)
        sums = {dim: dim.split(" + ") for dim in found if dim not in self.sizes}
        return found | {
            dim: sum(found[part] for part in parts)
            for dim, parts in sums.items()
            if len(parts) > 1 and all(part in found for part in parts)
        }

    def _shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        named = self.named(inputs)
        return {
            name: tuple(
                named[dim] if isinstance(dim, str) else size
                for dim, size in zip(shape or (), _usual(shape or ()), strict=True)
            )
            for name, (_, shape) in inputs.items()
        }


def noise_for(graph: gs.Graph) -> RandomData:
    """RandomData in sizes that the graph takes: where the usual ones contradict each other, some are sums of others.

    What fits is looked for among few combinations; where none does, the usual sizes are left for the run to refuse.
    """
    inputs, plain = inputs_of(graph), RandomData()
    if any(dtype is None for dtype, _ in inputs.values()):
        return plain
    first = next(plain.feeds(inputs, 1))
    fitting = Fitting(graph, first)
    if not fitting.misfit({}):
        return plain
    for other in itertools.islice(_others(plain.named(inputs)), MOST_TRIALS):
        shapes = {name: value.shape for name, value in next(RandomData(other).feeds(inputs, 1)).items()}
        if not fitting.misfit(shapes):
            return RandomData(other)
    return plain


def _usual(dims: Sequence[int | str | None]) -> list[int]:
    free = 64 if len(dims) > 3 else 16
    return [dim if isinstance(dim, int) else 1 if axis == 0 else free for axis, dim in enumerate(dims)]


def _others(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """One axis as long as two or three others together, as one other, or long at all; then two such axes."""
    single: list[dict[str, int]] = []
    for name in sizes:
        others = [other for other in sizes if other != name]
        sums = {sum(sizes[one] for one in terms) for count in (2, 3) for terms in itertools.combinations(others, count)}
        equal = sorted({sizes[one] for one in others} - {1})
        tried = [*sorted(sums), *equal, *LONG, 1]  # 1 last: it fits nearly everywhere, and hides what is wrong
        single += [{name: size} for size in dict.fromkeys(tried) if size != sizes[name]]
    yield from single
    for one, two in itertools.combinations(single, 2):
        if one.keys() != two.keys():
            yield {**one, **two}


def _made(rng: np.random.Generator, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Array:
    if dtype is None:
        raise DataError("the model takes a sequence or an optional value, which 'random' cannot make; give real data.")
    if dtype.kind == "O":
        return np.full(shape, "text", object)
    if dtype.name.startswith(("float", "bfloat")):
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return np.ones(shape, dtype)
