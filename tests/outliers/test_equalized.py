"""Equalization with the statistics of what it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.outliers.equalized import equalized, moved
from qcompiler.statistics import observe
from tests.kit.subjects import of_net
from tests.kit.vision import planted


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return of_net("equalize", planted.net(factor=100.0), planted.feeds(40), tmp_path).subject


def test_what_changed_is_measured_again_and_reaches_what_all_data_reached(subject: Subject) -> None:
    names = [one.activation for one in subject.layers.found]
    done = equalized(subject.model, subject.seen, names)
    assert done.error is not None
    assert done.error < 1e-4
    again = observe.histograms(done.model, names, list(subject.seen.kept))
    for name in ("a0", "a1", "a2", "a3"):
        assert done.observed.histograms[name] != subject.seen.histograms[name]
        assert done.observed.histograms[name].amax == pytest.approx(done.observed.outliers[name].channels.max())
        assert done.observed.histograms[name].amax >= again[name].amax
        before, after = (seen.outliers[name].channels for seen in (subject.seen, done.observed))
        assert after.max() / np.median(after) < before.max() / np.median(before) / 5
    assert done.observed.histograms["x"] is subject.seen.histograms["x"]


def test_a_model_without_pairs_stays(tmp_path: Path) -> None:
    proto = planted.net(act="Sigmoid")
    subject = of_net("equalize", proto, planted.feeds(8), tmp_path).subject
    done = equalized(subject.model, subject.seen, [one.activation for one in subject.layers.found])
    assert done.model is subject.model
    assert done.observed is subject.seen
    assert not done.report.changed


def test_what_moved_is_found_by_running(subject: Subject, tmp_path: Path) -> None:
    onnx.save(planted.net(factor=1.0), tmp_path / "other.onnx")
    other = models.load(tmp_path / "other.onnx")
    assert moved(subject.model, other, subject.seen, ["x", "a0", "a3", "a4"]) == ["a0", "a3"]
