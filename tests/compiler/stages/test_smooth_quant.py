"""The stage of SmoothQuant; how alphas are chosen: tests/outliers/smooth_quant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompiler.compiler.stages.smooth_quant import smooth_quant
from qcompiler.compiler.subject import Subject
from qcompiler.outliers.smooth_quant import trials
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from tests.kit.cases import prepared
from tests.kit.subjects import Standing, before


def _smoothed(standing: Standing) -> Subject:
    asked = standing.asked
    return standing.run(smooth_quant, standing.subject, asked.watch, asked.target, asked.planning, asked.smooth_quant)


def test_alphas_are_folded_and_what_changed_is_measured_again(tmp_path: Path) -> None:
    standing = before("smooth_quant", prepared(tmp_path, "transformer"), smooth_quant=SmoothQuantTable(alpha=0.5))
    after = _smoothed(standing)
    assert after.model is not standing.subject.model
    assert {one.activation for one in after.layers.found} <= set(after.seen.histograms)
    ((report, error),) = standing.run.passes["smooth_quant"]
    assert report.changed
    assert error is not None
    assert error < 1e-4
    assert standing.run.records["smooth_quant"]


@pytest.mark.parametrize(
    "recipe", [{"smooth_quant": SmoothQuantTable(alpha="off")}, {"precision": "fp16"}], ids=["off", "float"]
)
def test_where_it_is_off_the_subject_goes_on_as_it_is(tmp_path: Path, recipe: dict[str, Any]) -> None:
    standing = before("smooth_quant", prepared(tmp_path, "transformer"), **recipe)
    after = _smoothed(standing)
    assert after is standing.subject
    assert standing.run.records["smooth_quant"] is None


@pytest.mark.parametrize(
    ("recipe", "fits"),
    [
        ({}, True),
        ({"weight_granularity": "tensor"}, False),  # such weights are not fitted
        ({"search_time": 1e-3}, False),  # there is no time for it
        ({"safety": SafetyTable(target_sqnr_db=1.0)}, False),  # what meets the goal is not fitted, perhaps
    ],
    ids=["missed", "one scale", "no time", "met"],
)
def test_alphas_are_chosen_for_fitted_weights_where_these_will_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], fits: bool
) -> None:
    asked = list[bool]()

    class Told(trials.Trials):
        def __init__(self, *given: Any, fitting: bool) -> None:
            asked.append(fitting)
            super().__init__(*given, fitting=fitting)

    monkeypatch.setattr(trials, "Trials", Told)
    high = {"safety": SafetyTable(target_sqnr_db=60.0), **recipe}
    _smoothed(before("smooth_quant", prepared(tmp_path, "transformer"), **high))
    assert asked == [fits]
