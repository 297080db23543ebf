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


def runs_in(seconds: float, macs: float) -> int:
    """How many runs of a model with so many multiply-accumulates a time pays for, at the nominal speed; 1 at least."""
    return max(1, int(seconds / max(macs / SPEED, LEAST_RUN)))
