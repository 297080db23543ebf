"""A metric that is measured with a clock: what it takes by itself, and what the model takes for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.support.foreseen import Foreseen, ScoreWork
from qcompiler.verification.metrics import clocked as module
from qcompiler.verification.metrics.clocked import Clocked, clocked
from qcompiler.verification.metrics.halves import foreseen_loss, foreseen_scores
from tests.kit.rewrite import model, to_graph

Run = Callable[[Mapping[str, Any]], Any]
RNG = np.random.default_rng(5)
PICTURES = RNG.standard_normal((16, 1, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)


def net() -> models.Model:
    proto = model(("MatMul", "x w", "y"), inputs={"x": ("n", 4)}, weights={"w": WEIGHT})
    return models.Model(to_graph(proto), {}, None, 8)


def mean(run: Run) -> float:
    return float(np.mean([run({"x": one})["y"].mean() for one in PICTURES]))


def once(run: Run) -> float:
    return float(run({"x": PICTURES[0]})["y"].mean())


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later."""
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


@pytest.mark.usefixtures("ticking")
def test_runs_of_the_model_are_told_from_the_work_of_the_metric() -> None:
    found = clocked(mean, net())
    assert found.own == (2 * 16 + 1 - 16) / 2  # two looks at the clock a run, one around all of it
    assert found.scoring(2.0) == ScoreWork(found.own, 16 * 4 / 2, split=True)  # answers are kept for the second score


@pytest.mark.usefixtures("ticking")
def test_a_metric_that_cannot_be_split_is_asked_once() -> None:
    found = clocked(once, net())
    assert found.halves.scores == 1
    assert not found.scoring(1.0).split


def test_answers_that_were_kept_are_not_asked_for_again() -> None:
    found: Clocked = clocked(mean, net())

    def broken(_: Any) -> Any:
        raise AssertionError("the answers are known")

    other = found.halves.answered_by(broken)
    assert other.loss(lambda feeds: {"y": feeds["x"] @ WEIGHT}).whole == pytest.approx(0.0)


def test_a_metric_that_can_be_split_is_asked_more_often_on_fewer_runs() -> None:
    scoring = ScoreWork(seconds=1.0, runs=10.0, split=True)
    assert foreseen_loss(scoring).quantized == pytest.approx(5.0)
    assert foreseen_loss(scoring).seconds == pytest.approx(5**0.5)  # between one time and five, by the same factor
    assert foreseen_loss(ScoreWork(1.0, 10.0)) == Foreseen(quantized=10.0, seconds=1.0)
    assert foreseen_scores(scoring, halved=True) == Foreseen(runs=10.0, quantized=10.0, seconds=9.0)
    assert foreseen_scores(scoring, halved=False) == Foreseen(runs=10.0, quantized=10.0, seconds=2.0)
