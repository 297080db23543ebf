"""The changes that bring a plan to its goal: those first that remove most noise for their price.

Noise powers of independent layers add up, view by view. What counts is by how much views are too loud; a view that is
quiet enough asks for nothing. Each round predicts, makes as many changes as the prediction asks for, and runs the plan:
how much more noise there really was than the sum predicts is what the next prediction is scaled by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.numerics.sqnr import NOTHING, decibel, noise_power
from qcompiler.planning.search.prices import Assignment, Limits, Prices
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Noise = NDArray[np.float64]  # [views]

Noises = Mapping[str, Mapping[DType, "Noise"]]
Move = tuple[str, "Use | None"]  # a group and what it changes to
ROUNDS = 8
LOUDEST = 1e12  # stands for infinite noise, so that differences stay numbers


@dataclass(frozen=True, slots=True)
class Step:
    """One plan that was tried: share of MACs that are quantized (0..1) and the SQNR of the outputs in dB."""

    share: float
    sqnr_db: float


@dataclass(frozen=True, eq=False)
class Reached:
    """Where a search ended.

    Attributes:
        chosen: the plan.
        curve: the plans that were run on the way, the chosen one last.
        scale: by view, how much more noise there was in the end than the sum of the groups predicts.
        ran: every plan that was run, with the SQNR of its outputs in dB.
    """

    chosen: Assignment
    curve: tuple[Step, ...]
    scale: Noise
    ran: tuple[tuple[Assignment, float], ...] = ()


@dataclass(frozen=True, eq=False)
class _Path:
    """The plans that were run on the way.

    Attributes:
        prices: for their shares.
        curve: what each reached; a plan that was run before may stand there again, as the one that is gone on from.
        ran: each with its SQNR in dB.
    """

    prices: Prices
    curve: list[Step] = field(default_factory=list)
    ran: list[tuple[Assignment, float]] = field(default_factory=list)

    def add(self, plan: Assignment, noises: Noise) -> None:
        """One that was run."""
        step = _step(self.prices, plan, noises)
        self.curve.append(step)
        self.ran.append((plan, step.sqnr_db))

    def ended(self, chosen: Assignment, scale: Noise) -> Reached:
        """The search ends with a plan."""
        return Reached(chosen, tuple(self.curve), scale, tuple(self.ran))


class Board:
    """What every group may become, with the noise that it then sends to each view and its price.

    Args:
        uses: how each group is quantized in each format.
        noises: noise-to-signal power of each group alone in each format: [views].
        prices: costs and shares.
        high: whether groups may go to high precision.
    """

    def __init__(
        self, uses: Mapping[str, Mapping[DType, Use]], noises: Noises, prices: Prices, *, high: bool = True
    ) -> None:
        self.groups, self.prices = list(uses), prices
        self._options: list[list[Use | None]] = [
            [*uses[one].values(), *([None] if high else [])] for one in self.groups
        ]
        widest = max((len(one) for one in self._options), default=0)
        views = next((noise.size for formats in noises.values() for noise in formats.values()), 1)
        self._noise = np.full((len(self.groups), widest, views), np.inf)
        self._price = np.full((len(self.groups), widest), np.inf)
        for at, group in enumerate(self.groups):
            for option, use in enumerate(self._options[at]):
                known = None if use is None else noises.get(group, {}).get(use.dtype)
                self._noise[at, option] = 0.0 if known is None else np.minimum(known, LOUDEST)
                self._price[at, option] = prices.of(group, use)

    def cheapest(self) -> Assignment:
        """Every group in its cheapest type; of equal ones, in the quietest."""
        worst = self._noise.max(axis=2, initial=0.0)
        return {
            group: min(enumerate(self._options[at]), key=lambda one: (self._price[at, one[0]], worst[at, one[0]]))[1]
            for at, group in enumerate(self.groups)
        }

    def left(self, chosen: Mapping[str, Use | None]) -> Noise:
        """The sum of what all groups send to each view: [views]."""
        return np.asarray(self._noise[np.arange(len(self.groups)), self._at(chosen)].sum(axis=0))

    def _at(self, chosen: Mapping[str, Use | None]) -> NDArray[np.intp]:
        return np.array([self._options[at].index(chosen[one]) for at, one in enumerate(self.groups)], np.intp)

    def changes(
        self, chosen: Mapping[str, Use | None], wanted: Noise, allowed: Callable[[Assignment], bool], most: int
    ) -> list[Move]:
        """Changes until the sum is down to `wanted` in every view, but one at least; none where none removes noise.

        Args:
            chosen: what they start from.
            wanted: sums of noise that are good enough: [views].
            allowed: whether a plan may be; a change to high precision that may not be is passed over.
            most: so many changes at most.
        """
        current, made = dict(chosen), list[Move]()
        at, rows = self._at(chosen), np.arange(len(self.groups))
        barred = np.zeros(self._price.shape, bool)
        left = self._noise[rows, at].sum(axis=0)
        while ((left > wanted).any() or not made) and len(made) < most:
            goal = wanted if (left > wanted).any() else np.zeros_like(wanted)
            after = left + self._noise - self._noise[rows, at][:, None, :]
            gain = np.maximum(left - goal, 0).sum() - np.maximum(after - goal, 0).sum(axis=2)
            price = np.maximum(self._price - self._price[rows, at][:, None], NOTHING)
            worth = np.where(barred | ~(gain > 1e-12 * left.sum()), -np.inf, gain / price)
            group, option = (int(one) for one in np.unravel_index(int(worth.argmax()), worth.shape))
            if worth[group, option] == -np.inf:
                break
            to = self._options[group][option]
            if to is None and not allowed({**current, self.groups[group]: to}):
                barred[group, option] = True
                continue
            at[group], current[self.groups[group]] = option, to
            left = self._noise[rows, at].sum(axis=0)
            made.append((self.groups[group], to))
        return made


def improve(measure: Measure, board: Board, begin: Assignment, noises: Noise, limits: Limits) -> Reached:
    """Rounds of predicting and running until the target or the floor is met.

    Args:
        measure: runs plans.
        board: what groups may become.
        begin: where to start.
        noises: of that plan, as run: [views].
        limits: the target and the floor.
    """
    prices, good = board.prices, noise_power(limits.target_db)
    current, moves, missed = begin, list[Move](), 0
    path = _Path(prices)
    path.add(begin, noises)
    best: tuple[float, Assignment, Step] = (_worst(noises), begin, path.curve[-1])
    scale = np.ones_like(noises)
    for _ in range(ROUNDS):
        if _worst(noises) <= good:
            break
        scale = noises / np.maximum(board.left(current), 1e-9 * max(_worst(noises), NOTHING))
        more = _wanted(board, current, np.maximum(scale, NOTHING), limits, noises, measure.shares)
        if not more:
            break
        more, now = _nearer(measure, begin, moves, more, noises, path)
        if not more:
            break
        missed = len(moves)
        moves += more
        current, noises = changed(begin, moves), now
        best = min(best, (_worst(noises), current, path.curve[-1]), key=lambda tried: tried[0])
    if moves and _worst(noises) <= good:
        return path.ended(_take_back(measure, begin, moves, missed, limits, path), scale)
    if best[1] != current:  # noise of layers can cancel: what was tried first may be the best
        path.curve.append(best[2])
    return path.ended(best[1], scale)


def _nearer(
    measure: Measure,
    begin: Assignment,
    moves: Sequence[Move],
    more: list[Move],
    before: Noise,
    path: _Path,
) -> tuple[list[Move], Noise]:
    """The first of `more` changes, as many as bring the outputs nearer; none where not even one does.

    The noise of a layer can make up for that of another: without it, there is more.

    Returns:
        The changes, and the noise with them.
    """
    while more:
        plan = changed(begin, [*moves, *more])
        noises = measure.noises(quantized(plan))
        path.add(plan, noises)
        if _worst(noises) < _worst(before):
            return more, noises
        more = more[: len(more) // 2]
    return more, before


def _wanted(
    board: Board, current: Assignment, scale: Noise, limits: Limits, noises: Noise, shares: Noise
) -> list[Move]:
    """The changes of one round: to the target as far as the floors allow, else until the outputs are of any use.

    An output is useless by its noise over all of its power: one that hardly varies need not be.
    """
    most, prices = len(board.groups) * 2, board.prices
    good = noise_power(limits.target_db) / scale
    more = board.changes(current, good, lambda one: prices.share(one) >= limits.min_share, most)
    if not more and _worst(noises) > noise_power(limits.doubtful_db):
        more = board.changes(current, good, lambda one: prices.share(one) >= limits.least_share, most)
    if more or _worst(noises * shares) <= noise_power(limits.useless_db):
        return more
    useful = noise_power(limits.useless_db) / (scale * np.maximum(shares, NOTHING))
    return board.changes(current, useful, lambda one: True, most)


def _take_back(
    measure: Measure,
    begin: Assignment,
    moves: Sequence[Move],
    missed: int,
    limits: Limits,
    path: _Path,
) -> Assignment:
    """The fewest of `moves` that meet the target, by halving: predictions that are too dark make too many.

    Args:
        measure: runs plans.
        begin: what the moves start from.
        moves: all of them together meet the target.
        missed: so many of them do not.
        limits: the target.
        path: gets the plans that are run, and last the one that is chosen.
    """
    enough, last = len(moves), path.curve[-1]
    while enough - missed > 1:
        middle = (missed + enough) // 2
        chosen = changed(begin, moves[:middle])
        noises = measure.noises(quantized(chosen))
        path.add(chosen, noises)
        if _worst(noises) <= noise_power(limits.target_db):
            enough, last = middle, path.curve[-1]
        else:
            missed = middle
    if path.curve[-1] != last:
        path.curve.append(last)
    return changed(begin, moves[:enough])


def changed(begin: Mapping[str, Use | None], moves: Sequence[Move]) -> Assignment:
    """What moves lead to; groups that go to high precision stand last, in the order in which they go."""
    chosen = dict(begin)
    for group, to in moves:
        if to is None:
            del chosen[group]
        chosen[group] = to
    return chosen


def quantized(chosen: Mapping[str, Use | None]) -> dict[str, Use]:
    """The groups of a plan that are quantized."""
    return {group: use for group, use in chosen.items() if use is not None}


def _worst(noises: Noise) -> float:
    return float(noises.max(initial=0.0))


def _step(prices: Prices, chosen: Assignment, noises: Noise) -> Step:
    return Step(prices.share(chosen), decibel(_worst(noises)))
