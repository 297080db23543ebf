"""What smoothing makes of a model: another one, other observations, and nothing of what it was given is changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qcompiler.data.source import open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs
from qcompiler.outliers.smooth_quant import trials
from qcompiler.outliers.smooth_quant.groups import SmoothGroup
from qcompiler.outliers.smooth_quant.trials import Smoothed, SmoothQuantOptions, fold_outliers, smoothable
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.plan import Candidate
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.tables import QfemTable, SmoothQuantTable
from qcompiler.runtime.session import Session
from qcompiler.statistics.observe import Observations, observe
from qcompiler.statistics.points import Points
from qcompiler.target import DType, parse_target
from qcompiler.verification.equivalence import UNDONE
from tests.kit import glu
from tests.kit.rewrite import content, doubling, to_graph

FEEDS = glu.feeds(4)
SCOPE = Scope(parse_target("tensorrt-rtx"))


@pytest.fixture(scope="module")
def loaded() -> models.Model:
    """A decoder of one layer with outlier channels."""
    return models.Model(to_graph(glu.stack(channels=glu.OUTLIERS, layers=1)), {}, None, 10)


@pytest.fixture(scope="module")
def found(loaded: models.Model) -> list[Candidate]:
    return list(SCOPE.layers(loaded).found)


@pytest.fixture(scope="module")
def observed(loaded: models.Model, found: list[Candidate]) -> Observations:
    inputs: Inputs = {"ids": (np.dtype(np.int64), ("batch", "length"))}
    points = Points.of(outliers={one.activation: -1 for one in found})
    return observe(loaded, points, open_source(FEEDS, inputs))


def smoothed(loaded: models.Model, found: list[Candidate], observed: Observations, alpha: str | float) -> Smoothed:
    options = SmoothQuantOptions(SmoothQuantTable(alpha=alpha), QfemTable(), DType.INT8, "auto", per_channel=True)
    return fold_outliers(
        loaded, found, observed, options, SCOPE, lambda _, after: [candidate.activation for candidate in after]
    )


def test_what_was_given_stays_as_it_is(loaded: models.Model, found: list[Candidate], observed: Observations) -> None:
    before, seen = content(loaded.graph), dict(observed.histograms)
    counts = {name: histogram.count for name, histogram in seen.items()}
    done = smoothed(loaded, found, observed, 0.6)
    assert content(loaded.graph) == before
    assert observed.histograms == seen
    assert {name: histogram.count for name, histogram in observed.histograms.items()} == counts
    assert done.model is not loaded
    assert done.observed is not observed
    name = next(group.tensor for group in done.groups if group.alpha is not None)
    assert done.observed.histograms[name].amax < observed.histograms[name].amax / 2
    expected, got = (Session(one).run(FEEDS[0])["logits"] for one in (loaded, done.model))
    assert np.abs(expected - got).max() < 1e-4 * np.abs(expected).max()


def test_reports_and_the_error_of_the_check_come_back(
    loaded: models.Model, found: list[Candidate], observed: Observations
) -> None:
    done = smoothed(loaded, found, observed, "auto")
    (report,) = done.reports
    assert report.changed
    assert 0 <= done.errors[report.name] < 1e-4
    assert done.tried.keys() >= {"auto", "off"}
    reach = {one.node for one in SCOPE.layers(done.model)[0]}
    assert {reader for group in done.groups for reader in group.readers} == reach


def test_a_fold_that_misses_the_check_is_undone(
    loaded: models.Model, found: list[Candidate], observed: Observations, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubling(monkeypatch, SmoothQuant)
    done = smoothed(loaded, found, observed, 0.6)
    assert done.model is loaded
    assert done.observed is observed
    assert done.reports[0].undone
    assert {(group.alpha, group.why) for group in done.groups} == {(None, UNDONE)}


def test_where_no_alpha_is_wanted_the_model_is_the_one_given(
    loaded: models.Model, found: list[Candidate], observed: Observations
) -> None:
    done = smoothed(loaded, found, observed, "off")
    assert done.model is loaded
    assert done.observed is observed
    assert not done.reports
    assert not done.errors
    assert all(group.alpha is None for group in done.groups)


def test_there_must_be_samples_layers_and_a_wish(found: list[Candidate], observed: Observations) -> None:
    assert smoothable(found, observed, SmoothQuantTable())
    assert smoothable(found, observed, SmoothQuantTable(alpha="off", layers={"DOWN": 0.5}))
    assert not smoothable(found, observed, SmoothQuantTable(alpha="off"))
    assert not smoothable([], observed, SmoothQuantTable())
    assert not smoothable(found, Observations(observed.histograms), SmoothQuantTable())


FIXED = [str(alpha) for alpha in trials.FIXED]


def _attempt(figures: dict[str, float]) -> Callable[[str | float], trials.Attempt]:
    def attempt(alpha: str | float) -> trials.Attempt:
        group = SmoothGroup("x", ("X",), None if alpha == "off" else 0.5, "", "")
        return trials.Attempt(str(alpha), (group,), figures.get(str(alpha), 0.0))

    return attempt


@pytest.mark.parametrize(
    ("figures", "asked", "best"),
    [
        ({"off": 10, "auto": 20}, ["off", "auto"], "auto"),
        ({"off": 20, "auto": 21, "0.5": 22}, ["off", "auto", *FIXED], "0.5"),
        ({"off": 20, "auto": 19, "0.5": 18}, ["off", "auto", *FIXED], "off"),
    ],
)
def test_one_alpha_for_all_is_tried_where_the_chosen_ones_gain_little(
    figures: dict[str, float], asked: list[str], best: str
) -> None:
    found, tried = trials.best_of(_attempt(figures))
    assert [one.label for one in tried] == asked
    assert found.label == best


def test_what_the_outputs_say_is_held_against_what_the_layers_choose(
    loaded: models.Model, found: list[Candidate], observed: Observations, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SmoothQuantOptions(SmoothQuantTable(), QfemTable(), DType.INT8, "auto", per_channel=True)
    trial = trials.Trials(loaded, found, observed, options, SCOPE)
    monkeypatch.setattr(trial, "attempt", _attempt({"local": 20.0, "auto": 19.0, "0.5": 21.0}))
    best, tried = trial.better(clear=False)
    assert best is not None
    assert best.label == "0.5"
    assert {"local", *FIXED} <= set(tried)
    monkeypatch.setattr(trial, "attempt", _attempt({"local": 22.0}))
    assert trial.better(clear=False)[0] is None


def test_where_the_outputs_choose_the_same_nothing_is_measured(
    loaded: models.Model, found: list[Candidate], observed: Observations
) -> None:
    options = SmoothQuantOptions(
        SmoothQuantTable(), QfemTable(), DType.INT8, "auto", per_channel=True, search_time=1e-3
    )  # no time for a look
    trial = trials.Trials(loaded, found, observed, options, SCOPE)
    assert trial.better(clear=True) == (None, {})
    assert trial.runs == 0


def test_choices_are_those_of_the_layers_that_can_be_smoothed(
    loaded: models.Model, found: list[Candidate], observed: Observations
) -> None:
    options = SmoothQuantOptions(SmoothQuantTable(), QfemTable(), DType.INT8, "auto", per_channel=True)
    trial = trials.Trials(loaded, found, observed, options, SCOPE)
    choices = trial.choices()
    assert {name for name, one in choices.items() if one.alpha is not None} == {
        group.tensor for group in trial.plan(trials.LOCAL) if group.alpha is not None
    }
    assert all(one.error <= one.plain for one in choices.values())
    assert any(one.gain_db > 10 for one in choices.values())  # outlier channels were planted
