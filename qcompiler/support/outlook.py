"""How long all of a run still takes: what was foreseen of each stage, corrected by how it went so far.

    pace = (trust · foreseen in all + taken so far) / (trust · foreseen in all + what was foreseen of that)
    left = pace · (what was foreseen of the stages to come) + what is left of the one that runs

At the beginning the pace is 1: a first stage of a second says little. Of the stage that runs, what its own bar says
counts the more the further it has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_TRUST = 0.05  # so much of the whole must have gone by before the pace goes by that rather than by what was foreseen
_OVERDUE = 0.25  # a stage that takes longer than foreseen is thought to have so much of what it took before it


class Outlook:
    """What is left of a run of stages.

    Args:
        foreseen: seconds by stage, in their order.
        clock: gives seconds.
    """

    def __init__(self, foreseen: Mapping[str, float], clock: Callable[[], float] = time.perf_counter) -> None:
        self._foreseen = dict(foreseen)
        self._whole = sum(self._foreseen.values())
        self._clock = clock
        self._open = dict(self._foreseen)  # stages to come, and what is foreseen of each
        self._taken, self._of = 0.0, 0.0  # by stages that have ended, and what was foreseen of these
        self._running: str | None = None
        self._began, self._share = 0.0, 0.0

    def began(self, stage: str) -> None:
        """A stage begins. Where it has run before, it and those behind it come again."""
        if stage in self._foreseen and stage not in self._open:
            order = list(self._foreseen)
            self._open |= {name: self._foreseen[name] for name in order[order.index(stage) :]}
        self._running, self._began, self._share = stage, self._clock(), 0.0

    def skipped(self, stage: str) -> None:
        """A stage does not run: its result is there."""
        self._open.pop(stage, None)

    def reached(self, share: float) -> None:
        """So much of the stage that runs is done, 0..1, by its own bar."""
        self._share = min(max(share, 0.0), 1.0)

    def ended(self) -> None:
        """The stage that runs has ended; those in front of it that did not run will not."""
        if self._running is None:
            return
        order = list(self._foreseen)
        taken = self._clock() - self._began
        if self._running in self._foreseen:
            self._taken += taken
            self._of += self._open.pop(self._running, 0.0)
            for name in order[: order.index(self._running)]:
                self._open.pop(name, None)
        self._running = None

    @property
    def left(self) -> float:
        """Seconds until all of it is done."""
        pace = self._pace()
        later = sum(seconds for name, seconds in self._open.items() if name != self._running)
        return pace * later + self._left_here(pace)

    def _pace(self) -> float:
        """How many times longer than foreseen it takes."""
        known = _TRUST * self._whole
        return (known + self._taken) / (known + self._of) if known + self._of > 0 else 1.0

    def _left_here(self, pace: float) -> float:
        """Seconds that the stage that runs still takes."""
        if self._running is None:
            return 0.0
        spent = self._clock() - self._began
        by_plan = max(pace * self._open.get(self._running, 0.0) - spent, _OVERDUE * spent)
        if not self._share:
            return by_plan
        by_bar = spent * (1.0 - self._share) / self._share
        return self._share * by_bar + (1.0 - self._share) * by_plan


def rounded(seconds: float) -> str:
    """Seconds as an estimate is told: `under 1 s`, `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 10:
        return f"{seconds:.0f} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
