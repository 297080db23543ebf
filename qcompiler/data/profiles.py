"""Optimization profiles out of real feeds: a smallest, a usual and a largest shape of all inputs that fit together.

Axes belong together: a mask is as long as what it masks, a cache and a chunk add up. So the usual shapes are those of
one real feed, and the smallest and largest ones are held against the graph. Where the sizes that each axis has by
itself contradict each other, the feeds tell what depends on what: sums, multiples and products that hold in all of
them, tried on the graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from qcompiler.data.batches import BatchAxes
from qcompiler.data.samples import ShapeRange
from qcompiler.errors import DataError
from qcompiler.ir.signature import Inputs, InputShapes

Shapes = Mapping[str, tuple[int, ...]]
Misfit = Callable[[Shapes], str]  # why shapes do not fit the graph; empty where they do

MOST_TERMS = 3  # axes that add up to another one
MOST_TRIALS = 512  # combinations that are held against the graph
MOST_ATTEMPTS = 20_000  # combinations of rules that are computed
_Sizes = tuple[int, ...]
_Pick = Callable[[Sequence[int]], int]  # min or max


def by_itself(shapes: ShapeRange, inputs: Inputs, axes: BatchAxes) -> dict[str, InputShapes]:
    """Smallest, median and largest size of every axis by itself, for the inputs with a free axis; the batch from 1 up.

    These need not fit together.
    """
    table = _Table.of(shapes, inputs, axes)
    low, high = table.extreme(min), table.extreme(max)
    return table.profiles(low, table.medians(), high) if table.rows else {}


def usual(shapes: ShapeRange, inputs: Inputs, axes: BatchAxes) -> dict[str, tuple[int, ...]]:
    """The shapes of the feed that is closest to the medians of all axes, for the inputs with a free axis."""
    table = _Table.of(shapes, inputs, axes)
    return table.shapes(table.usual()) if table.rows else {}


def consistent(shapes: ShapeRange, inputs: Inputs, axes: BatchAxes, misfit: Misfit) -> dict[str, InputShapes]:
    """Smallest, usual and largest shapes, for the inputs with a free axis: each of the three fits together.

    Args:
        shapes: of the data.
        inputs: the model's, as in `qcompiler.data.source.open_source`.
        axes: which axes are a batch; it goes from 1 up.
        misfit: asks the graph; only shapes that no feed had are asked for.

    Raises:
        DataError: the sizes of the data have no smallest or no largest combination that fits together.
    """
    table = _Table.of(shapes, inputs, axes)
    if not table.rows:
        return {}
    ends = [_end(table, pick, misfit) for pick in (min, max)]
    return table.profiles(ends[0], table.usual(), ends[1])


@dataclass(frozen=True)
class _Table:
    """Sizes of the free axes: a column each, a row for each combination that occurred.

    Attributes:
        columns: input and axis.
        rows: how often each row of sizes came.
        names: of the columns, where the model gives them one.
        batch: which columns count samples.
        fixed: shapes of the inputs that have a free axis, in which the columns are filled in.
    """

    columns: tuple[tuple[str, int], ...]
    rows: Mapping[_Sizes, int]
    names: tuple[str | None, ...]
    batch: frozenset[int]
    fixed: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, shapes: ShapeRange, inputs: Inputs, axes: BatchAxes) -> _Table:
        seen = {combination: dict(combination) for combination in shapes.seen}
        first = next(iter(seen.values()), {})
        ranks = {
            name: len(shape)
            for name in inputs
            if (shape := first.get(name)) is not None and _always(name, len(shape), seen.values())
        }
        columns = tuple((name, axis) for name, rank in ranks.items() for axis in _free(name, rank, inputs))
        rows: dict[_Sizes, int] = {}
        for combination, known in seen.items():
            row = tuple(known[name][axis] for name, axis in columns)
            rows[row] = rows.get(row, 0) + shapes.seen[combination]
        batch = frozenset(at for at, (name, axis) in enumerate(columns) if axes.axes.get(name) == axis)
        named = {name for name, _ in columns}
        names = tuple(_name(inputs[name][1], axis) for name, axis in columns)
        return cls(
            columns, rows if columns else {}, names, batch, {name: first[name] for name in inputs if name in named}
        )

    def column(self, at: int) -> tuple[int, ...]:
        return tuple(row[at] for row in self.rows)

    def extreme(self, pick: _Pick) -> _Sizes:
        """The smallest or largest size of each axis by itself; the batch from 1 up."""
        found = [pick(self.column(at)) for at in range(len(self.columns))]
        return self.with_batch(found, 1) if pick is min else tuple(found)

    def with_batch(self, sizes: Sequence[int], batch: int) -> _Sizes:
        return tuple(batch if at in self.batch else size for at, size in enumerate(sizes))

    def medians(self) -> _Sizes:
        """The lower median of each axis by itself: a size that occurred."""
        half = (sum(self.rows.values()) + 1) // 2
        return tuple(self._median(at, half) for at in range(len(self.columns)))

    def _median(self, at: int, half: int) -> int:
        left = half
        for row in sorted(self.rows, key=lambda row: row[at]):
            left -= self.rows[row]
            if left <= 0:
                return row[at]
        raise ValueError("the median of nothing")

    def usual(self) -> _Sizes:
        """The row closest to the medians: the sum of the ratios of sizes decides, then how often it came."""
        middle = self.medians()

        def distance(row: _Sizes) -> float:
            return math.fsum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(row, middle, strict=True))

        return min(self.rows, key=lambda row: (distance(row), -self.rows[row], row))

    def occurred(self, sizes: _Sizes) -> bool:
        """Whether a feed had these sizes, whatever its batch: samples of a batch do not know of each other."""
        return self.with_batch(sizes, 1) in {self.with_batch(row, 1) for row in self.rows}

    def shapes(self, sizes: _Sizes) -> dict[str, tuple[int, ...]]:
        known = {name: list(shape) for name, shape in self.fixed.items()}
        for (name, axis), size in zip(self.columns, sizes, strict=True):
            known[name][axis] = size
        return {name: tuple(shape) for name, shape in known.items()}

    def profiles(self, low: _Sizes, middle: _Sizes, high: _Sizes) -> dict[str, InputShapes]:
        three = [self.shapes(sizes) for sizes in (low, middle, high)]
        return {name: InputShapes(three[0][name], three[1][name], three[2][name]) for name in three[0]}


def _always(name: str, rank: int, seen: Iterable[Shapes]) -> bool:
    return all(name in one and len(one[name]) == rank for one in seen)


def _name(declared: Sequence[int | str | None] | None, axis: int) -> str | None:
    size = None if declared is None else declared[axis]
    return size if isinstance(size, str) else None


def _free(name: str, rank: int, inputs: Inputs) -> Iterator[int]:
    dtype, declared = inputs[name]
    if dtype is not None:
        yield from (axis for axis in range(rank) if declared is None or not isinstance(declared[axis], int))


# --- Ends -------------------------------------------------------------------------------------------------------------


def _end(table: _Table, pick: _Pick, misfit: Misfit) -> _Sizes:
    """Sizes that fit together and are all at most (at least) as large as those of any feed."""
    plain = table.extreme(pick)
    why = "" if table.occurred(plain) else misfit(table.shapes(plain))
    if not why:
        return plain
    groups = _groups(table)
    for tried in (_computed(groups, plain, pick), _stretched(groups, plain, pick)):
        for sizes in itertools.islice(tried, MOST_TRIALS):
            if not misfit(table.shapes(sizes)):
                return sizes
    word = "smallest" if pick is min else "largest"
    sizes_of = ", ".join(f"'{name}' {_spelled(shape)}" for name, shape in table.shapes(plain).items())
    raise DataError(
        f"the shapes of the data give no optimization profile: the {word} sizes of all axes ({sizes_of}) do not fit "
        f"together in this model ({why}), and no sum, multiple or product that holds in all feeds makes them fit. "
        "Give three shapes that do with --shapes, for every input with a free axis."
    )


def _spelled(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


class _Group(NamedTuple):
    """Columns that move together: their sizes, and where they stand."""

    sizes: _Sizes
    places: tuple[int, ...]


def _groups(table: _Table) -> list[_Group]:
    """All columns but the batch: those that vary and are equal in all feeds together, the others by their names."""
    found: dict[tuple[_Sizes, object], list[int]] = {}
    for at, name in enumerate(table.names):
        column = table.column(at)
        if at not in table.batch:
            together = "" if len(set(column)) > 1 else at if name is None else name
            found.setdefault((column, together), []).append(at)
    return [_Group(column, tuple(places)) for (column, _), places in found.items()]


def _computed(groups: Sequence[_Group], plain: _Sizes, pick: _Pick) -> Iterator[_Sizes]:
    """The extreme sizes with some of the axes computed from others, as in all feeds; the simplest first."""
    columns = [group.sizes for group in groups]
    rules = {at: found for at in range(len(columns)) if (found := list(_rules(columns, at)))}
    for picked in itertools.islice(_picked(rules), MOST_ATTEMPTS):
        sizes = _resolved(columns, picked, pick)
        if sizes is not None:
            placed = zip(sizes, groups, strict=True)
            yield _put(plain, {where: size for size, group in placed for where in group.places})


def _picked(rules: Mapping[int, Sequence[_Rule]]) -> Iterator[dict[int, _Rule]]:
    """A rule for some of the columns, for few of them first."""
    for count in range(1, len(rules) + 1):
        for chosen in itertools.combinations(rules, count):
            for each in itertools.product(*(rules[at] for at in chosen)):
                yield dict(zip(chosen, each, strict=True))


def _resolved(columns: Sequence[_Sizes], picked: Mapping[int, _Rule], pick: _Pick) -> list[int] | None:
    """The size of each column, those with a rule by their rule; None where these go in circles or hold not all."""
    sizes: dict[int, int | None] = {at: pick(column) for at, column in enumerate(columns) if at not in picked}
    for _ in picked:
        for at, rule in picked.items():
            if at not in sizes and all(term in sizes for term in rule.terms):
                sizes[at] = rule.value([sizes[term] or 0 for term in rule.terms])
    found = [sizes.get(at) for at in range(len(columns))]
    known = [size for size in found if size is not None]
    holds = len(known) == len(found) and all(pick((size, *of)) == size for size, of in zip(known, columns, strict=True))
    return known if holds else None


def _stretched(groups: Sequence[_Group], plain: _Sizes, pick: _Pick) -> Iterator[_Sizes]:
    """The extreme sizes with one of the axes moved further out, by 1 first: what rounds down obeys no simple rule."""
    limit = 0 if pick is min else sum(plain)
    for step in range(1, sum(plain) + 1):
        for _, places in groups:
            size = plain[places[0]] + (-step if pick is min else step)
            if size >= limit if pick is min else size <= limit:
                yield _put(plain, dict.fromkeys(places, size))


def _put(sizes: _Sizes, changed: Mapping[int, int]) -> _Sizes:
    return tuple(changed.get(at, size) for at, size in enumerate(sizes))


@dataclass(frozen=True)
class _Rule:
    """A size that is, in all feeds, a multiple of a sum or of a product of others, and a constant more or less."""

    terms: tuple[int, ...]
    factor: Fraction
    more: int
    product: bool = False

    def value(self, sizes: Sequence[int]) -> int | None:
        found = self.factor * (math.prod(sizes) if self.product else sum(sizes)) + self.more
        return int(found) if found.denominator == 1 and found >= 0 else None


def _rules(columns: Sequence[Sequence[int]], at: int) -> Iterator[_Rule]:
    """What the column may be computed by: sums, then multiples of one, then products, of columns that vary."""
    others = [other for other, column in enumerate(columns) if other != at and len(set(column)) > 1]
    mine = columns[at]
    for count in range(1, MOST_TERMS + 1):
        for terms in itertools.combinations(others, count):
            more = mine[0] - sum(columns[term][0] for term in terms)
            if all(mine[row] - sum(columns[term][row] for term in terms) == more for row in range(len(mine))):
                yield _Rule(terms, Fraction(1), more)
    for other in others:
        line = _line(columns[other], mine)
        if line is not None:
            yield _Rule((other,), *line)
    for one, two in itertools.combinations(others, 2):
        areas = [a * b for a, b in zip(columns[one], columns[two], strict=True)]
        ratio = next((Fraction(size, area) for size, area in zip(mine, areas, strict=True) if area), Fraction(0))
        if ratio and all(size == ratio * area for size, area in zip(mine, areas, strict=True)):
            yield _Rule((one, two), ratio, 0, product=True)


def _line(xs: Sequence[int], ys: Sequence[int]) -> tuple[Fraction, int] | None:
    """Factor and constant of y = factor · x + constant; None where that does not hold or y falls as x grows."""
    points = sorted(set(zip(xs, ys, strict=True)))
    (x0, y0), (x1, y1) = points[0], points[-1]
    if x0 == x1:
        return None
    factor = Fraction(y1 - y0, x1 - x0)
    constant = y0 - factor * x0
    straight = all(y == factor * x + constant for x, y in points)
    if not straight or factor <= 0 or factor == 1 or constant.denominator != 1:
        return None
    return factor, int(constant)
