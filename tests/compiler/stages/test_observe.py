"""The stage that runs all data once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.observe import ObserveOptions, observe
from tests.kit.cases import SAMPLES, prepared
from tests.kit.subjects import before


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_that_anybody_will_ask_about_is_measured(tmp_path: Path, workers: int) -> None:
    standing = before("observe", prepared(tmp_path, "conv"), workers=workers)
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    wanted = standing.asked.watch.tensors(standing.subject.model, standing.subject.layers.found)
    assert set(wanted) <= set(after.seen.histograms)
    assert {one.activation for one in after.layers.found} == set(after.seen.outliers)
    assert len(after.seen.kept) == 16
    assert standing.run.records["data"]["feeds"] == SAMPLES
    assert not standing.subject.seen.histograms  # what was handed on stays as it was


def test_the_record_names_channels_and_residual_branches(tmp_path: Path) -> None:
    standing = before("observe", prepared(tmp_path, "transformer"))
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert [one["tensor"] for one in standing.run.records["outliers"]] == list(after.seen.outliers)
    assert len(standing.run.records["residuals"]) == 2


def test_without_data_nothing_is_run(tmp_path: Path) -> None:
    standing = before("observe", prepared(tmp_path, "conv"), data=False, precision="bf16")
    after = standing.run(observe, standing.subject, standing.asked.watch, ObserveOptions(None, 1))
    assert after is standing.subject
    assert standing.run.records["data"] is None
