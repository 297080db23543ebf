"""The stage that runs all data once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.stages.observe import ObserveOptions, observe
from qcompiler.runtime.gpu.device import Device
from tests.kit.cases import SAMPLES, Case, prepared
from tests.kit.subjects import before


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_that_anybody_will_ask_about_is_measured(tmp_path: Path, workers: int) -> None:
    standing = before("observe", prepared(tmp_path, "conv"), workers=workers)
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    wanted = standing.asked.watch.tensors(standing.subject.model, standing.subject.layers.found)
    assert set(wanted) <= set(after.seen.histograms)
    assert {one.activation for one in after.layers.found} == set(after.seen.outliers)
    assert (len(after.seen.kept), len(after.seen.held)) == (14, 5)  # the other 5 of 24 judge
    assert standing.run.records["data"]["feeds"] == SAMPLES
    assert not standing.subject.seen.histograms  # what was handed on stays as it was


@pytest.mark.parametrize("workers", [1, 2])
def test_what_ran_the_model_is_recorded_and_changes_nothing_else(tmp_path: Path, workers: int) -> None:
    """The host's memory stands for a GPU."""
    pytest.importorskip("torch")
    standing = before("observe", prepared(tmp_path, "conv"), workers=workers)
    asked = standing.asked.observe
    plain = standing.run(observe, standing.subject, standing.asked.watch, asked)
    assert standing.run.records["data"]["provider"] == "CPUExecutionProvider"
    bound = dataclasses.replace(asked, device=Device("cpu", gpu="a stand-in"))
    after = standing.run(observe, standing.subject, standing.asked.watch, bound)
    record = standing.run.records["data"]
    assert (record["provider"], record["gpu"]) == ("CPUExecutionProvider", "a stand-in")
    assert record["counted_with"].startswith("torch ")
    assert after.seen.histograms == plain.seen.histograms
    assert after.seen.outliers == plain.seen.outliers
    assert after.seen.ranges == plain.seen.ranges


def test_shapes_are_those_of_the_batches_that_were_asked_for(tmp_path: Path) -> None:
    standing = before("observe", prepared(tmp_path, "conv"), batch=8)
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert after.seen.shapes.seen == {(("x", (8, 3, 16, 16)),): 3}  # 14 samples calibrate, 5 choose, 5 judge


def test_the_record_names_channels_and_residual_branches(tmp_path: Path) -> None:
    standing = before("observe", prepared(tmp_path, "transformer"))
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert [one["tensor"] for one in standing.run.records["outliers"]] == list(after.seen.outliers)
    assert len(standing.run.records["residuals"]) == 2


def test_without_data_nothing_is_run(tmp_path: Path) -> None:
    standing = before("observe", prepared(tmp_path, "conv"), data=False, precision="bf16")
    after = standing.run(observe, standing.subject, standing.asked.watch, ObserveOptions(None))
    assert after is standing.subject
    assert standing.run.records["data"] is None


def silent(folder: Path) -> Case:
    """The small convolutional net with pictures that are black in all samples."""
    case = prepared(folder, "conv")
    np.savez(case.data, x=np.zeros_like(case.rows))
    return case


def test_layers_that_the_data_shows_nothing_of_are_refused_with_a_warning(tmp_path: Path) -> None:
    standing = before("observe", silent(tmp_path))
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert "C1" not in {one.node for one in after.layers.found}
    assert {one.rule for one in after.layers.refused if one.node in ("C1", "C2", "C3")} == {"zero", "constant"}
    assert after.scope.layers(after.model) == after.layers
    assert after.seen.lacks["x"].rule == "zero"
    assert [text for text in standing.run.warnings if "calibration samples input 'x' was 0" in text]


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight"])
def test_where_no_range_is_chosen_nothing_is_lacking(tmp_path: Path, precision: str) -> None:
    standing = before("observe", silent(tmp_path), precision=precision)
    told = list(standing.run.warnings)
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert after.layers == standing.subject.layers
    assert standing.run.warnings == told


def test_ranges_alone_leave_float_what_they_do_not_name(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    (tmp_path / "ranges.json").write_text('{"x": 4.0, "r2": 9.0}')
    standing = before("observe", case, data=False, ranges=str(tmp_path / "ranges.json"))
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert {one.node for one in after.layers.found} == {"C1", "C3"}
    assert {one.node: one.rule for one in after.layers.refused if one.rule == "no-range"} == {
        "C2": "no-range",
        "Y": "no-range",
    }
    assert after.scope.layers(after.model) == after.layers
    assert any("nothing gives a range that 2 layers need ('C2', 'Y')" in text for text in standing.run.warnings)


def test_with_data_what_ranges_do_not_name_is_measured(tmp_path: Path) -> None:
    case = silent(tmp_path)
    (tmp_path / "ranges.json").write_text('{"x": 4.0}')
    standing = before("observe", case, ranges=str(tmp_path / "ranges.json"))
    after = standing.run(observe, standing.subject, standing.asked.watch, standing.asked.observe)
    assert "C1" in {one.node for one in after.layers.found}  # what the data does not show of x, the user knows
