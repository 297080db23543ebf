"""observe: histograms of exactly what was asked for, and results that order, batching and workers cannot change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.data.batches import BatchAxes
from qcompiler.data.samples import fingerprint
from qcompiler.data.source import open_source
from qcompiler.errors import DataError, ModelError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.gpu.device import Device
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations, histograms, observe, peaks
from qcompiler.statistics.outliers import Outliers, Tokens
from qcompiler.statistics.points import Points
from qcompiler.support.each import Each, in_turn
from tests.kit.memory import crossing
from tests.kit.rewrite import model

RNG = np.random.default_rng(1)
W = RNG.standard_normal((8, 16)).astype(np.float32)
X = RNG.standard_normal((24, 6, 8)).astype(np.float32)
AXES = BatchAxes({"x": 0})
INPUTS: Inputs = {"x": (np.dtype(np.float32), ("n", 6, 8))}


@pytest.fixture
def loaded(tmp_path: Path) -> models.Model:
    proto = model(
        ("MatMul", "x w", "a"),
        ("Relu", "a", "b"),
        ("Log", "b", "c"),
        ("Sqrt", "b", "y"),
        inputs={"x": ("n", 6, 8)},
        outputs=("y", "c"),
        weights={"w": W},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


def feeds(order: Any = None) -> list[Feeds]:
    return [{"x": X[i : i + 1]} for i in (range(len(X)) if order is None else order)]


def seen(model_: models.Model, data: Any, *, batch: int | None = None, **options: Any) -> Observations:
    source = open_source(data, INPUTS, batch=batch).along(AXES)
    return observe(model_, Points.of(histograms=["x", "b"]), source, axes=AXES, **options)


def test_histograms_are_those_of_the_tensors_asked_for(loaded: models.Model) -> None:
    found = seen(loaded, feeds())
    assert list(found.histograms) == ["x", "b"]
    assert found.histograms["x"] == Histogram.of(X)
    relu = np.maximum(X @ W, 0)
    assert found.histograms["b"].count == relu.size
    assert found.histograms["b"].amax == pytest.approx(relu.max(), rel=1e-5)
    assert found.feeds == 24


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_and_workers_change_nothing(loaded: models.Model, seed: int) -> None:
    first = seen(loaded, feeds())
    other = seen(loaded, feeds(np.random.default_rng(seed).permutation(24)), each=crossing)
    assert other.histograms == first.histograms
    assert str(other.fingerprint) == str(first.fingerprint)
    assert [one["x"].tobytes() for one in other.kept] == [one["x"].tobytes() for one in first.kept]
    assert other.shapes.seen == first.shapes.seen == {(("x", (1, 6, 8)),): 24}


def test_batches_keep_the_same_samples_and_nearly_the_same_histograms(loaded: models.Model) -> None:
    first, other = seen(loaded, feeds()), seen(loaded, feeds(), batch=16)
    assert other.feeds == 2
    assert other.histograms["x"] == first.histograms["x"]
    assert other.histograms["b"].amax == pytest.approx(first.histograms["b"].amax, rel=1e-6)
    assert [one["x"].tobytes() for one in other.kept] == [one["x"].tobytes() for one in first.kept]
    assert all(one["x"].shape == (1, 6, 8) for one in other.kept)


def test_as_many_samples_are_kept_as_asked_for_and_they_are_copies(loaded: models.Model) -> None:
    buffer = np.empty((1, 6, 8), np.float32)

    def reused() -> Any:
        for one in X:
            buffer[0] = one
            yield {"x": buffer}

    found = seen(loaded, reused, keep=5)
    assert len(found.kept) == 5
    rows = {one.tobytes() for one in X}
    assert len({one["x"].tobytes() for one in found.kept} & rows) == 5
    assert seen(loaded, feeds(), keep=0).kept == ()


def test_progress_counts_feeds(loaded: models.Model) -> None:
    steps: list[float] = []
    seen(loaded, feeds(), advance=steps.append)
    assert sum(steps) == 24


def test_nothing_asked_for_still_reads_the_data(loaded: models.Model) -> None:
    found = observe(loaded, Points(), open_source(feeds(), INPUTS), axes=AXES, each=crossing)
    assert (found.histograms, found.feeds, len(found.kept)) == ({}, 24, 16)


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_nan_that_an_output_shows_is_refused_with_its_node(tmp_path: Path, each: Each) -> None:
    proto = model(("Neg", "x", "a"), ("Log", "a", "b"), ("Exp", "b", "y"), inputs={"x": ("n", 6, 8)})
    onnx.save(proto, tmp_path / "nan.onnx")
    data = [{"x": np.full((1, 6, 8), sign, np.float32)} for sign in (-1.0, 1.0)]
    with pytest.raises(ModelError, match=r"output 'y' .* on sample 1; node 'B' \(Log\) is the first"):
        observe(
            models.load(tmp_path / "nan.onnx"),
            Points.of(histograms=["a", "b"]),
            open_source(data, INPUTS),
            axes=AXES,
            each=each,
        )


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_infinities_that_are_meant_are_counted_and_left_out(loaded: models.Model, each: Each) -> None:
    source = open_source([{"x": np.zeros((1, 6, 8), np.float32)}, *feeds()], INPUTS)
    points = Points.of(histograms=["b", "c"], outliers={"c": -1})
    found = observe(loaded, points, source, axes=AXES, each=each)
    relu = np.maximum(X @ W, 0)
    assert found.histograms["c"].nonfinite == (relu == 0).sum() + relu[0].size
    assert found.histograms["c"].amax == pytest.approx(np.abs(np.log(relu[relu > 0])).max(), rel=1e-4)
    assert np.isfinite(found.outliers["c"].ratio)


def test_nan_that_the_model_guards_against_is_counted_and_left_out(tmp_path: Path) -> None:
    proto = model(
        ("Log", "x", "a"),
        ("IsNaN", "a", "n"),
        ("Where", "n zero a", "y"),
        inputs={"x": ("n", 6, 8)},
        weights={"zero": np.float32(0)},
    )
    onnx.save(proto, tmp_path / "guard.onnx")
    data = [{"x": np.full((1, 6, 8), value, np.float32)} for value in (-1.0, 2.0)]
    found = observe(
        models.load(tmp_path / "guard.onnx"), Points.of(histograms=["a"]), open_source(data, INPUTS), axes=AXES
    )
    assert (found.histograms["a"].nonfinite, found.histograms["a"].finite) == (48, 48)


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_a_sample_that_does_not_fit_ends_the_run_with_its_index(loaded: models.Model, each: Each) -> None:
    data = [*feeds(range(5)), {"x": np.full((1, 6, 8), np.nan, np.float32)}, *feeds(range(5))]
    with pytest.raises(DataError, match="sample 5.*'x'"):
        seen(loaded, data, each=each)


@pytest.mark.parametrize(("seed", "batch"), [(1, None), (2, None), (3, None), (1, 8), (2, 5)])
def test_outliers_are_those_of_the_tensors_asked_for_however_they_are_run(
    loaded: models.Model, seed: int, batch: int | None
) -> None:
    source = open_source(feeds(np.random.default_rng(seed).permutation(24)), INPUTS, batch=batch).along(AXES)
    found = observe(loaded, Points.of(histograms=["b"], outliers={"x": -1}), source, axes=AXES, each=crossing)
    expected = Outliers()
    for feed in feeds():
        expected.update(feed["x"], Tokens(feed))
    assert found.outliers == {"x": expected}
    assert set(found.histograms) == {"b", "x"}
    assert found.outliers["x"].samples == 24


def test_more_statistics_make_another_value(loaded: models.Model) -> None:
    points = Points.of(histograms=["x", "b"], outliers={"x": -1})
    first = observe(loaded, points, open_source(feeds(), INPUTS), axes=AXES)
    new, again = Histogram.of(X), Outliers(-1)
    other = first.with_({"z": new}, {"x": again})
    assert list(first.histograms) == ["x", "b"]
    assert first.outliers["x"] is not again
    assert list(other.histograms) == ["x", "b", "z"]
    assert other.histograms["z"] is new
    assert other.outliers == {"x": again}
    assert (other.kept, other.feeds, other.fingerprint) == (first.kept, first.feeds, first.fingerprint)


def test_only_the_part_that_calibrates_is_measured(loaded: models.Model) -> None:
    source = open_source(feeds(), INPUTS)
    order = source.prints()
    fit, choose, judge = source.part(order[:4]), source.part(order[4:6]), source.part(order[6:])
    points = Points.of(histograms=["b"])
    found = observe(loaded, points, fit, choose=choose, judge=judge, axes=AXES)
    alone = observe(loaded, points, fit, axes=AXES)
    assert found.histograms["b"] == alone.histograms["b"]
    assert (found.feeds, alone.feeds) == (len(order), 4)
    assert {fingerprint(one) for one in found.held} == {fingerprint(one) for one in choose}
    assert found.choosing == found.held
    assert not found.in_sample
    assert alone.in_sample
    assert alone.choosing == alone.kept
    everything = observe(loaded, points, source, axes=AXES)
    assert str(found.fingerprint) == str(everything.fingerprint)
    assert found.shapes.seen == everything.shapes.seen


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_ranges_are_those_of_all_samples_also_of_those_that_are_not_measured_otherwise(
    loaded: models.Model, each: Each
) -> None:
    samples = feeds()
    loudest = int(np.argmax(np.abs(X).max((1, 2))))
    first, rest = samples[:loudest] + samples[loudest + 1 :], [samples[loudest]]
    points = Points.of(histograms=["b"], ranges=["x", "a", "b"])
    sources = [open_source(part, INPUTS) for part in (first[:12], first[12:], rest)]
    found = observe(loaded, points, sources[0], axes=AXES, choose=sources[1], judge=sources[2], each=each)
    a = X @ W
    assert list(found.histograms) == ["b"]
    assert found.histograms["b"].count == 12 * a[0].size
    assert found.ranges["x"].absmax == np.abs(X).max() == np.abs(X[loudest]).max()
    assert found.ranges["a"].low == pytest.approx(a.min(), rel=1e-5)
    assert found.ranges["b"].high == pytest.approx(a.max(), rel=1e-5)


def test_ranges_alone_fetch_no_tensor(loaded: models.Model) -> None:
    found = observe(loaded, Points.of(ranges=["a", "c"]), open_source(feeds(), INPUTS), axes=AXES)
    assert list(found.ranges) == ["a", "c"]
    assert found.ranges["c"].low == -np.inf  # the logarithm of 0, which is no error where no histogram is wanted
    assert not found.histograms


def test_on_a_device_the_same_is_found(loaded: models.Model) -> None:
    """The host's memory stands for a GPU: outputs are bound, and torch counts them where they lie."""
    pytest.importorskip("torch")
    points = Points.of(histograms=["x", "a", "b", "c"], outliers={"a": -1, "b": -1}, rows={"b": -1}, ranges=["a", "b"])
    source = open_source(feeds(), INPUTS, batch=4).along(AXES)
    here, there = (observe(loaded, points, source, axes=AXES, device=one) for one in (None, Device("cpu")))
    assert there.histograms == here.histograms
    assert there.histograms["c"].nonfinite  # of which the outputs show infinities
    assert there.outliers == here.outliers
    assert there.ranges == here.ranges
    assert all(np.array_equal(there.rows[name].values, one.values) for name, one in here.rows.items())


def test_peaks_are_those_of_the_histograms(loaded: models.Model) -> None:
    """Log has infinities and Sqrt none; what is not finite is no peak."""
    names = ["x", "a", "b", "c", "y"]
    counted = histograms(loaded, names, feeds())
    assert counted["c"].nonfinite
    assert peaks(loaded, names, feeds()) == {name: one.amax for name, one in counted.items()}


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_how_far_the_samples_that_choose_reach_is_known_without_another_run(loaded: models.Model, each: Each) -> None:
    parts = (feeds()[:8], feeds()[8:16], feeds()[16:])
    sources = [open_source(part, INPUTS) for part in parts]
    points = Points.of(histograms=["x", "a", "b", "c"], ranges=["x", "a", "b", "c"])
    found = observe(loaded, points, sources[0], axes=AXES, choose=sources[1], judge=sources[2], each=each)
    known = peaks(loaded, ["x", "a", "b"], parts[1])
    assert found.reached == pytest.approx(known)  # of the logarithm, whose end is infinite, the ends tell nothing
    changed = found.with_({"a": Histogram.of(X)})
    assert changed.reached == pytest.approx({name: known[name] for name in "xb"})  # it holds something else now


def test_ends_of_padded_samples_say_nothing_of_how_far_they_reach(tmp_path: Path) -> None:
    proto = model(("Relu", "x", "y"), inputs={"x": ("n", 6), "attention_mask": (np.int64, ("n", 6))})
    onnx.save(proto, tmp_path / "m.onnx")
    padded = models.load(tmp_path / "m.onnx")
    inputs: Inputs = {
        name: (np.dtype(kind), ("n", 6)) for name, kind in (("x", np.float32), ("attention_mask", np.int64))
    }
    points = Points.of(histograms=["x", "y"], ranges=["x", "y"])
    for mask, known in (([1] * 6, {"x", "y"}), ([1, 1, 1, 1, 0, 0], set[str]())):
        masks = np.array([mask], np.int64)
        samples: list[Feeds] = [{"x": np.full((1, 6), at, np.float32), "attention_mask": masks} for at in range(1, 5)]
        sources = [open_source(part, inputs) for part in (samples[:2], samples[2:])]
        found = observe(padded, points, sources[0], choose=sources[1])
        assert found.reached.keys() == known


def test_what_is_rearranged_reaches_as_far_as_before(tmp_path: Path) -> None:
    proto = model(
        ("Relu", "x", "a"),
        ("Transpose", "a", "t", {"perm": [0, 2, 1]}),
        ("Neg", "t", "y"),
        inputs={"x": ("n", 6, 8)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    moved = models.load(tmp_path / "m.onnx")
    sources = [open_source(part, INPUTS) for part in (feeds()[:8], feeds()[8:])]
    points = Points.of(histograms=["t"], ranges=["x", "a", "y"])  # `t` has no range of its own
    found = observe(moved, points, sources[0], axes=AXES, choose=sources[1])
    assert found.reached == pytest.approx(peaks(moved, ["t"], feeds()[8:]))
