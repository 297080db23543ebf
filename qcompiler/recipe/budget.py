"""How long may be searched: a time of the user's or an effort, and how many runs of a model that pays for.

A search that looks at the clock finds something else each time. So a time is turned into a count of runs by a nominal
speed, the same on every machine: a model of M multiply-accumulates takes M / 50e9 seconds a run, and a millisecond at
least. That is about what two cores of a laptop do; where the machine is faster, the same count takes less time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from qcompiler.recipe.checks import WrongError, number

SPEED: Final = 50e9  # multiply-accumulates a second
LEAST_RUN: Final = 1e-3  # seconds of a run, however small the model: feeding it takes its time
EFFORTS: Final[Mapping[str, float]] = MappingProxyType({"quick": 10.0, "balanced": 30.0, "thorough": 300.0})  # seconds
PASSES: Final[Mapping[str, float]] = MappingProxyType({"quick": 0.5, "balanced": 4.0, "thorough": 20.0})  # of the data
FREE: Final[Mapping[str, float]] = MappingProxyType({"quick": 0.5, "balanced": 2.0, "thorough": 30.0})  # seconds
LAYERS: Final[Mapping[str, float]] = MappingProxyType({"quick": 1.0, "balanced": 0.5, "thorough": 1.0})  # of it
EACH: Final[Mapping[str, int]] = MappingProxyType({"quick": 0, "balanced": 2, "thorough": 4})  # runs a choice
LEAST_RUNS: Final = 32
MOST_SAMPLES: Final = 64  # more data makes no search longer
_UNITS: Final[Mapping[str, float]] = MappingProxyType({"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0})


def duration(value: Any) -> float:
    """A time in seconds: `90s`, `2m`, `1.5h`, or a number of seconds above 0."""
    allowed = "a time such as 90s, 2m or 1h, or a number of seconds, above 0"
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)\s*", value, re.ASCII)
        if found is None:
            raise WrongError(allowed)
        value = float(found[1]) * _UNITS[found[2] or "s"]
    try:
        seconds = float(number(0)(value))
    except WrongError as error:
        raise WrongError(allowed) from error
    if seconds <= 0:
        raise WrongError(allowed)
    return seconds


def seconds_of(effort: str, search_time: float | None) -> float:
    """How many seconds may be searched: what the user says, else by the effort."""
    return EFFORTS[effort] if search_time is None else search_time


def budget_of(effort: str, search_time: float | None, macs: float, samples: int) -> int:
    """How many runs of a model a search may spend.

    A search costs a few passes over the data, whatever the model: half a pass (`quick`), 4 (`balanced`) or 20
    (`thorough`), of 64 samples at most. A model that is small enough gets what a moment pays for: half a second, 2, 30.

    Args:
        effort: quick, balanced or thorough.
        search_time: seconds that the user gives instead; None for what the effort says.
        macs: multiply-accumulates of a run.
        samples: that calibrate.
    """
    if search_time is not None:
        return runs_in(search_time, macs)
    passes = int(PASSES[effort] * min(samples, MOST_SAMPLES))
    return max(LEAST_RUNS, passes, runs_in(FREE[effort], macs))


def for_layers(effort: str, search_time: float | None, macs: float, samples: int) -> int:
    """How many of these runs the search for single layers may spend, which is what most of them are for.

    Half of the passes that an effort pays for (`balanced`), since plans that surely lose are given up early; a small
    model keeps its moment. A time that the user gives is used.

    Args:
        effort: as of `budget_of`, like the others.
        search_time: seconds that the user gives instead.
        macs: multiply-accumulates of a run.
        samples: that calibrate.
    """
    budget = budget_of(effort, search_time, macs, samples)
    if search_time is not None:
        return budget
    return max(LEAST_RUNS, int(LAYERS[effort] * budget), min(budget, runs_in(FREE[effort], macs)))


def runs_for(budget: int, effort: str, search_time: float | None, choices: int) -> int:
    """The budget of a search among so many choices: as of `for_layers`, but two runs for each of them (`balanced`).

    Few samples may hold as much as many do: eight windows of 256 tokens are 2048 rows. Counted in passes over them, a
    deep model would not have the runs that tell its layers apart.

    Args:
        budget: as of `for_layers`.
        effort: quick, balanced or thorough.
        search_time: seconds that the user gives, which are not exceeded; None for what the effort says.
        choices: groups of layers, times formats.
    """
    return budget if search_time is not None else max(budget, EACH[effort] * choices)


def runs_in(seconds: float, macs: float) -> int:
    """How many runs of a model with so many multiply-accumulates a time pays for, at the nominal speed; 1 at least."""
    return max(1, int(seconds / max(macs / SPEED, LEAST_RUN)))
