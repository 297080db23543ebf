"""Second moments of what products read: H = Σ x·xᵀ over all rows of all samples, which GPTQ rounds weights by.

    H [K, K],  one for each activation: q, k and v share it, and so do gate and up

The data is streamed: a run of the model leaves nothing behind but the sums. Rows are multiplied in float32 a few
hundred at a time and the products are summed in float64, so that neither many samples nor spiking tokens cost digits.

A Hessian takes 8·K² bytes: 19 MB for K = 1536, 1.6 GB for K = 14336. As many as fit `budget` are summed in one run of
the data and handed out before the next ones are begun, so it may be run several times. A model that is run in segments
(`runtime/chain.py`) is cut by its Hessians, too, and runs all of the data once. At least one is summed at a time,
whatever it takes.

What an attention mask of the feed excludes is no row. Beside the sums stands how far they differ from part to part of
the data, which says how much of them is chance (`Moments.shrinkage`). The data can be summed in folds, so that what is
fitted to one of them can be judged by the others.

All layers see the inputs of the float model. GPTQ can also be done layer by layer, on the inputs that the layers before
give once they are rounded; that takes a run of the data for every group of layers, and is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import Part, Stream, fill, is_large
from qcompiler.support.memory import room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hessian = NDArray[np.float64]


BUDGET = 2 << 30  # bytes of Hessians that are summed at a time
SHARE = 6  # of the memory that may be taken: as much again is for what is made of the largest of them
_ROWS = 512  # that are multiplied in float32 before they are summed in float64
_PIECES = 8  # of a feed with several samples, whose sums are compared


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of one activation, and how sure they are.

    Attributes:
        hessian: Σ x·xᵀ over all rows, float64 [K, K].
        rows: how many there were.
        spread: the rows came in pieces, each one of or a part of a sample: Σ of the squares off the diagonal of the
            Hessian of each piece.
        sizes: Σ of the squared numbers of rows of the pieces.
    """

    hessian: Hessian
    rows: int
    spread: float
    sizes: float

    @property
    def shrinkage(self) -> float:
        """The share of what stands off the diagonal that is chance, 0..1.

        By this share, moments are best pulled towards their diagonal (Ledoit and Wolf 2004; Schäfer and Strimmer 2005,
        "A shrinkage approach to large-scale covariance matrix estimation", target D). With pieces P_c of n_c rows,

            Σ |P_c|² = |M|² Σ n_c² + v,    |H|² = |M|² n² + v,    share = v / |H|²

        For independent rows this is about r / (r + n), where r is the effective rank of the activation, K at most.
        Pieces are samples and not rows, because rows of a sample resemble each other. Of a single piece, nothing is
        known but that bound: K / (K + n).
        """
        whole, even = _off_diagonal(self.hessian), self.sizes / max(self.rows, 1) ** 2
        if whole <= 0:
            return 1.0
        if even >= 1:
            return len(self.hessian) / (len(self.hessian) + self.rows)
        return min(max((self.spread - even * whole) / ((1 - even) * whole), 0.0), 1.0)

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        return Moments(
            self.hessian + other.hessian,
            self.rows + other.rows,
            self.spread + other.spread,
            self.sizes + other.sizes,
        )


@dataclass(frozen=True)
class Folds:
    """How the data is cut: samples in turn, or the rows of each sample in pieces one behind the other.

    Attributes:
        count: how many folds.
        by_rows: cuts the rows of each sample, for data of a single one.
    """

    count: int = 1
    by_rows: bool = False

    def of(self, rows: NDArray[Any], fold: int, index: int) -> NDArray[Any]:
        """The rows of sample `index` that belong to a fold, [some, K]."""
        if self.by_rows:
            return np.array_split(rows, self.count)[fold]
        return rows if index % self.count == fold else rows[:0]


ONE_FOLD = Folds()


def hessians(
    model: models.Model,
    depths: Mapping[str, int],
    source: Iterable[Feeds],
    *,
    folds: Folds = ONE_FOLD,
    budget: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Iterator[dict[str, tuple[Moments, ...]]]:
    """Runs the data and yields the moments of some activations after the other.

    Args:
        model: the float model.
        depths: by activation, its last dimension K; graph inputs are allowed.
        source: feeds; iterated once for each group of activations that fits the budget.
        folds: how the data is cut.
        budget: bytes of Hessians at a time; None for what there is room for.
        advance: called with the number of runs of the model since the last call.

    Yields:
        By activation, the moments of each fold. What was yielded before is not kept here.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    most = _most() if budget is None else budget
    if is_large(model):
        yield from _by_segment(model, depths, list(source), folds, most, advance)
        return
    for group in batches(depths, most, folds.count):
        seen = [Hessians({name: depths[name] for name in group}, folds, fold) for fold in range(folds.count)]
        fill(model, seen, source, advance=advance)
        yield {name: tuple(one.moments(name) for one in seen) for name in group}


def _by_segment(
    model: models.Model,
    depths: Mapping[str, int],
    feeds: Sequence[Feeds],
    folds: Folds,
    budget: int,
    advance: Callable[[int], None] | None,
) -> Iterator[dict[str, tuple[Moments, ...]]]:
    """The same of a large model, which all feeds go through once, segment after segment."""
    takes = {name: _size(depth, folds.count) for name, depth in depths.items()}
    stream = Stream(model, depths, quick=True, budget=budget, takes=takes)
    for names, parts in stream.by_segment(list(enumerate(feeds))):
        seen = [Hessians({name: depths[name] for name in names}, folds, fold) for fold in range(folds.count)]
        for part in parts:
            for one in seen:
                one.update(part)
            if part.last and advance is not None:
                advance(1)
        if names:
            yield {name: tuple(one.moments(name) for one in seen) for name in names}


def runs(model: models.Model, depths: Mapping[str, int], folds: int = 1) -> int:
    """How often the data is run."""
    if not depths:
        return 0
    return 1 if is_large(model) else len(batches(depths, _most(), folds))


def _most() -> int:
    """Bytes of Hessians that are summed at a time; one at least is, whatever it takes."""
    limit = room().limit
    return min(BUDGET, limit // SHARE) if room().tight and limit is not None else BUDGET


def _size(depth: int, folds: int) -> int:
    return 8 * depth * depth * folds


def batches(depths: Mapping[str, int], budget: int = BUDGET, folds: int = 1) -> list[list[str]]:
    """The activations in their order, in groups whose Hessians fit the budget; at least one in each."""
    groups: list[list[str]] = []
    left = 0
    for name, depth in depths.items():
        size = _size(depth, folds)
        if not groups or size > left:
            groups.append([])
            left = budget
        groups[-1].append(name)
        left -= size
    return groups


class Hessians:
    """The Hessian of each of some activations, filled by `qcompiler.runtime.stream.fill`.

    Attributes:
        found: by activation, float64 [K, K].
    """

    def __init__(self, depths: Mapping[str, int], folds: Folds = ONE_FOLD, fold: int = 0) -> None:
        """`depths` are last dimensions K, by activation; rows of one of the folds are summed."""
        self.found: dict[str, Hessian] = {name: np.zeros((depth, depth)) for name, depth in depths.items()}
        self._sums = {name: np.zeros(3) for name in depths}  # rows, spread, sizes
        self._folds, self._fold = folds, fold

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the activations."""
        return list(self.found)

    def update(self, part: Part) -> None:
        """Adds the rows of those that are in the part, without what is padding."""
        padding = Padding(part.feed)
        for name, total in self.found.items():
            if name not in part.values:
                continue
            value = np.asarray(part.values[name])
            rows = padding.keep(value).reshape(-1, len(total))
            samples = len(value) if value.ndim > 1 else 1
            self._add(name, self._folds.of(rows, self._fold, part.index), samples)

    def merge(self, other: Hessians) -> None:
        """Adds the sums of another one; in float64, so the order of merging counts in the last bits."""
        for name, total in other.found.items():
            self.found[name] += total
            self._sums[name] += other._sums[name]

    def moments(self, name: str) -> Moments:
        """Of one activation."""
        rows, spread, sizes = self._sums[name]
        return Moments(self.found[name], int(rows), float(spread), float(sizes))

    def _add(self, name: str, rows: NDArray[Any], samples: int) -> None:
        pieces = max(min(samples, _PIECES, len(rows)), -(-len(rows) // _ROWS))
        for piece in np.array_split(rows, pieces) if pieces else ():
            own = np.asarray(piece, np.float32)
            product = own.T @ own  # numpy recognises this as symmetric and does half of the work
            self.found[name] += product
            self._sums[name] += len(own), _off_diagonal(product), float(len(own)) ** 2


def _off_diagonal(hessian: NDArray[Any]) -> float:
    """The sum of squares off the diagonal."""
    diagonal = np.diag(hessian).astype(np.float64)
    return max(float(np.vdot(hessian, hessian)) - float(diagonal @ diagonal), 0.0)
