"""On how many samples a study is made: as many as the ranking of the layers takes, or all of them.

The first few show how far samples agree, and with that how many are needed for the ranking that all would give
(`certainty`). Runs of the model are counted, not seconds: the same data gives the same figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qcompiler.ir.signature import Feeds
from qcompiler.support.progress import ShownStage
from qcompiler.tools.sensitivity.certainty import samples_for
from qcompiler.tools.sensitivity.layer_study import MOST, Found, Study

FIRST: Final = 4  # samples that say how many more it takes
STEP: Final = 2  # samples that are worth another round
AIM: Final = 0.97  # of the rank correlation that is promised, .95: what few samples promise is not certain itself


@dataclass(frozen=True, slots=True)
class Sampled:
    """On what the figures rest.

    Attributes:
        exact: all samples were run because that was asked for.
        samples: how many were run.
        total: how many there are.
        runs: of the model, about; a run of a part of it counts as that part.
    """

    exact: bool
    samples: int
    total: int
    runs: float


def on_all(study: Study, feeds: Iterable[Feeds], total: int, stage: ShownStage) -> tuple[Found, Sampled]:
    """Every sample.

    Args:
        study: it has measured nothing yet.
        feeds: the samples, one at least.
        total: how many there are.
        stage: shown on it.
    """
    stage.total(total * study.size)
    for some in _some_of(iter(feeds), MOST):
        study.run(some, stage.advance)
    found = study.found()
    return found, Sampled(True, found.samples, found.samples, study.cost * found.samples)


def on_few(study: Study, feeds: Sequence[Feeds], total: int, budget: int, stage: ShownStage) -> tuple[Found, Sampled]:
    """As many samples as the ranking takes in every format, and the budget has room for.

    Args:
        study: it has measured nothing yet.
        feeds: samples to take from, in this order; one at least.
        total: how many the data has.
        budget: runs of the model; the first few samples are run all the same.
        stage: shown on it.
    """
    most = min(len(feeds), max(FIRST, int(budget / study.cost)))
    done, goal = 0, min(FIRST, most)
    while True:
        stage.total(goal * study.size)
        study.run(feeds[done:goal], stage.advance)
        found, done = study.found(), goal
        wanted = max(samples_for(AIM, errors, found.signals, total) for errors in found.errors.values())
        goal = min(max(wanted, done + STEP), 2 * done, most)
        if wanted <= done or goal <= done:
            return found, Sampled(False, done, max(total, done), study.cost * done)


def _some_of(feeds: Iterator[Feeds], count: int) -> Iterator[list[Feeds]]:
    while some := list(itertools.islice(feeds, count)):
        yield some
