"""What a stage will run, said before it does, and what that takes by the clock of one timed run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The work of a stage, counted in what a model costs; it adds up.

    Attributes:
        runs: of the float model, over one sample each.
        quantized: runs of the model with its activations rounded.
        counted: runs whose activations get histograms.
        observed: runs of which all is counted that *observe* counts.
        sessions: that are opened.
        seconds: known otherwise, such as from a build that was timed.
        copies: of all weights that stand in memory at the same time, beside the model's own.
    """

    runs: float = 0.0
    quantized: float = 0.0
    counted: float = 0.0
    observed: float = 0.0
    sessions: float = 0.0
    seconds: float = 0.0
    copies: float = 0.0

    def __add__(self, other: Foreseen) -> Foreseen:
        """One after the other: work adds up, and of memory the larger counts."""
        return _joined(lambda one, two: one + two, self, other)

    def times(self, count: float) -> Foreseen:
        """The same so many times, one after the other."""
        return _joined(lambda one, _: count * one, self, self)

    @property
    def in_all(self) -> float:
        """Runs of every kind."""
        return self.runs + self.quantized + self.counted + self.observed


NOTHING = Foreseen()


def between(least: Foreseen, most: Foreseen) -> Foreseen:
    """Where it is only known how little and how much it can be: what errs by the same factor both ways."""
    return _joined(_middle, least, most)


def _joined(work: Callable[[float, float], float], one: Foreseen, other: Foreseen) -> Foreseen:
    """Figure by figure; of memory the larger counts."""
    names = [field.name for field in fields(Foreseen) if field.name != "copies"]
    found = {name: work(getattr(one, name), getattr(other, name)) for name in names}
    return Foreseen(**found, copies=max(one.copies, other.copies))


def _middle(least: float, most: float) -> float:
    return math.sqrt(least * most) if least > 0 else most / 2


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """What it takes to ask a metric once.

    Attributes:
        seconds: of its own work, beside the runs of the model.
        runs: of the model, counted in samples of the data.
        split: it can be asked of single parts of its data, on answers that are known.
    """

    seconds: float = 0.0
    runs: float = 0.0
    split: bool = False

    def asked(self, times: float, *, runs: float = 0.0, quantized: float = 0.0) -> Foreseen:
        """So many scores, for which this part of its data is run by the float model and this by a quantized one."""
        return Foreseen(runs=runs * self.runs, quantized=quantized * self.runs, seconds=times * self.seconds)


NO_SCORE = ScoreWork()


@dataclass(frozen=True, slots=True)
class Clock:
    """What one timed run has shown of this model on this machine, in seconds.

    Attributes:
        run: of a run of the float model.
        quantized: of a run with its activations rounded.
        counted: of a run whose activations get histograms.
        observed: of a run of which all is counted.
        session: until a session is there.
    """

    run: float
    quantized: float
    counted: float
    observed: float
    session: float

    def seconds(self, foreseen: Foreseen) -> float:
        """What the work of a stage takes."""
        return (
            foreseen.runs * self.run
            + foreseen.quantized * self.quantized
            + foreseen.counted * self.counted
            + foreseen.observed * self.observed
            + foreseen.sessions * self.session
            + foreseen.seconds
        )
