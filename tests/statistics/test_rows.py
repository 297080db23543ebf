"""Recorded rows: what spikes is there, the rest is thinned evenly and counted."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import model as models
from qcompiler.runtime.stream import Part
from qcompiler.statistics import rows as recorded


def _identity(channels: int) -> models.Model:
    x = gs.Variable("x", np.float32, ["batch", "tokens", channels])
    y = gs.Variable("y", np.float32, ["batch", "tokens", channels])
    z = gs.Variable("z", np.float32, ["batch", "tokens", channels])
    nodes = [gs.Node("Relu", "relu", {}, [x], [y]), gs.Node("Abs", "abs", {}, [y], [z])]
    return models.Model(gs.Graph(nodes, [x], [z], opset=17), {}, None, 8)


def test_few_rows_are_all_taken() -> None:
    feeds = [{"x": np.abs(np.random.default_rng(i).normal(size=(2, 3, 4))).astype(np.float32)} for i in range(2)]
    found = recorded.record_rows(_identity(4), {"x": -1, "y": -1}, feeds)
    np.testing.assert_array_equal(found["y"].values, np.concatenate([f["x"].reshape(-1, 4) for f in feeds]))
    np.testing.assert_array_equal(found["x"].values, found["y"].values)
    assert found["y"].counts.tolist() == [1.0] * 12


def test_a_spike_among_thousands_of_rows_is_always_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_ROWS", 64)
    x = np.abs(np.random.default_rng(0).normal(size=(1, 5000, 4))).astype(np.float32)
    x[0, 3141, 2] = 500.0
    found = recorded.record_rows(_identity(4), {"y": -1}, [{"x": x}])["y"]
    assert found.values.max() == 500.0
    assert len(found.values) == 64
    assert found.counts.sum() == pytest.approx(5000)
    assert found.counts[np.argmax(found.values.max(axis=1))] == 1.0


def test_sums_over_rows_estimate_sums_over_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_ROWS", 512)
    x = np.abs(np.random.default_rng(1).normal(size=(1, 20000, 4))).astype(np.float32)
    found = recorded.record_rows(_identity(4), {"y": -1}, [{"x": x}])["y"]
    estimate = np.einsum("r,rc->c", found.counts, found.values**2)
    np.testing.assert_allclose(estimate, (x[0] ** 2).sum(0), rtol=0.2)


def test_memory_is_bounded_however_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_BYTES", 64 * 1024)
    x = np.ones((1, 4000, 256), np.float32)
    found = recorded.record_rows(_identity(256), {"y": -1}, [{"x": x}])["y"]
    assert found.values.nbytes <= 64 * 1024


def test_nothing_is_recorded_without_feeds() -> None:
    assert recorded.record_rows(_identity(4), {"y": -1}, []) == {}


def test_padding_is_no_row() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    recorder = recorded.Recorder({"x": -1}, 4, 1)
    recorder.update(Part(0, {"x": x, "attention_mask": mask}, {"x": x}, last=True))
    np.testing.assert_array_equal(recorder.rows()["x"].values, x[mask == 1])
