"""On how many samples a study is made: as many as the ranking of the layers takes, or all of them.

The first few show how far samples agree, and with that how many are needed for the ranking that all would give
(`certainty`). Runs of the model are counted, not seconds: the same data gives the same figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qcompiler.data.samples import Keep, fingerprint, loudness
from qcompiler.ir.signature import Feeds
from qcompiler.support.progress import ShownStage
from qcompiler.tools.sensitivity.certainty import SampleEvidence
from qcompiler.tools.sensitivity.layer_study import MOST, Study, StudyErrors

FIRST: Final = 4  # samples that say how many more it takes, at least
LOUD: Final = 2  # samples that reach farthest, which are always run
KEPT: Final = 32  # other samples that an estimate may take
FIGURES: Final = 96  # groups times samples that say it: where few groups are ranked, it takes more samples
STEP: Final = 2  # samples that are worth another round
AIM: Final = 0.97  # of the rank correlation that is promised, .95: what few samples promise is not certain itself


@dataclass(frozen=True, slots=True)
class Sampled:
    """On what the figures rest.

    Attributes:
        exact: all samples were run because that was asked for.
        samples: how many were run.
        loud: so many of the first ones stand for themselves alone.
        total: how many there are.
        runs: of the model, about; a run of a part of it counts as that part.
    """

    exact: bool
    samples: int
    loud: int
    total: int
    runs: float

    def evidence(self, found: StudyErrors) -> dict[str, SampleEvidence]:
        """What these samples have shown, by format."""
        return {
            name: SampleEvidence(errors, found.signals, self.loud, self.total) for name, errors in found.errors.items()
        }


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples that an estimate may take.

    Attributes:
        loud: the loudest of the data; none where loudness tells nothing, as of token ids.
        others: a choice of all others by their content, which is as good as chance, in the order in which to take them.
        total: how many samples the data has.
    """

    loud: Sequence[Feeds]
    others: Sequence[Feeds]
    total: int

    @staticmethod
    def of(samples: Iterable[Feeds]) -> Pool:
        """Reads the samples once."""
        total, loud, others = 0, Keep(LOUD, key=loudness), Keep(KEPT + LOUD)
        for one in samples:
            total += 1
            loud.offer(one)
            others.offer(one)
        top = [one for one in loud.feeds if loudness(one) != 0]
        known = {fingerprint(one) for one in top}
        return Pool(top, [one for one in others.feeds if fingerprint(one) not in known][:KEPT], total)


def on_all(study: Study, feeds: Iterable[Feeds], total: int, stage: ShownStage) -> tuple[StudyErrors, Sampled]:
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
    return found, Sampled(True, found.samples, 0, found.samples, study.cost * found.samples)


def on_few(study: Study, pool: Pool, budget: int, stage: ShownStage) -> tuple[StudyErrors, Sampled]:
    """The loudest samples, and as many others as the ranking takes in every format and the budget has room for.

    Args:
        study: it has measured nothing yet.
        pool: samples to take from.
        budget: runs of the model; the first few samples are run all the same.
        stage: shown on it.
    """
    loud, feeds = len(pool.loud), [*pool.loud, *pool.others]
    most = min(len(feeds), max(FIRST + loud, int(budget / study.cost)))
    done, goal = 0, min(first_of(study.size) + loud, most)
    while True:
        stage.total(goal * study.size)
        study.run(feeds[done:goal], stage.advance)
        found, done = study.found(), goal
        sampled = Sampled(False, done, loud, max(pool.total, done), study.cost * done)
        wanted = max(one.samples_for(AIM) for one in sampled.evidence(found).values())
        goal = min(max(wanted, done + STEP), 2 * done, most)
        if wanted <= done or goal <= done:
            return found, sampled


def first_of(groups: int) -> int:
    """How many samples say how many more it takes to rank so many groups."""
    return max(FIRST, math.ceil(FIGURES / groups))


def _some_of(feeds: Iterator[Feeds], count: int) -> Iterator[list[Feeds]]:
    while some := list(itertools.islice(feeds, count)):
        yield some
