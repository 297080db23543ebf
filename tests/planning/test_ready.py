"""What a plan is searched with is prepared once, and serves no other question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.ask import planning
from qcompiler.data.source import open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs
from qcompiler.planning.placement import candidates
from qcompiler.planning.planner import make_plan
from qcompiler.planning.ready import prepared
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.statistics.observe import observe, peaks
from qcompiler.statistics.points import Points
from qcompiler.target import parse_target
from tests.kit.rewrite import model

TARGET = parse_target("tensorrt-rtx")
INPUTS: Inputs = {"x": (np.dtype(np.float32), ("n", 12, 32))}


@pytest.fixture
def loaded(tmp_path: Path) -> models.Model:
    """A large layer behind another."""
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal((32, 32)) / 6).astype(np.float32) for name in ("w1", "w2")}
    proto = model(("MatMul", "x w1", "h"), ("MatMul", "h w2", "y"), inputs={"x": ("n", 12, 32)}, weights=weights)
    onnx.save(proto, tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


def test_what_was_prepared_serves_other_goals_and_no_other_question(loaded: models.Model) -> None:
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 12, 32)).astype(np.float32)} for i in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET, ())
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, INPUTS))
    options = planning(Recipe(min_sqnr=30.0))
    ready = prepared(loaded, layers, seen, options, TARGET)
    higher = planning(Recipe(min_sqnr=40.0, safety=SafetyTable(target_sqnr_db=50.0)))
    assert ready.fits(loaded, layers, seen, higher, TARGET)
    assert not ready.fits(loaded, layers, seen, planning(Recipe(calibrator="mse")), TARGET)
    assert not ready.fits(loaded, layers, seen, options, parse_target("onnxruntime"))
    assert not ready.fits(models.copy(loaded), layers, seen, options, TARGET)
    alone, again = (make_plan(loaded, layers, seen, options, TARGET, ready=one) for one in (None, ready))
    assert alone.plan.to_json() == again.plan.to_json()
    other = make_plan(loaded, layers, seen, planning(Recipe(calibrator="minmax")), TARGET, ready=ready)
    assert {one.calibrator for one in other.plan.quantizers.values()} == {"minmax"}


def test_by_the_clock_a_faster_machine_may_search_longer(loaded: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 12, 32)).astype(np.float32)} for i in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET, ())
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, INPUTS))
    budgets = []
    for seconds in (0.5, 0.25):
        clock = iter((0.0, seconds))
        monkeypatch.setattr("qcompiler.planning.ready.time.perf_counter", lambda clock=clock: next(clock))
        options = planning(Recipe(search_time=10.0, reproducible=False))
        ready = prepared(loaded, layers, seen, options, TARGET)
        budgets.append(ready.budget)
        assert ready.budget == budgets[-1]  # the clock is looked at once
    assert budgets == [20, 40]
    counted = prepared(loaded, layers, seen, planning(Recipe(search_time=10.0)), TARGET)
    assert counted.budget == 10_000  # a millisecond a run, whatever the clock says


def test_routers_and_what_is_little_in_front_of_them_are_not_searched(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"inp": (32, 32), "r": (32, 16), "w": (32, 512), "v": (512, 32)}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    numbers = {"depth": np.array(16), "off_on": np.array([0, 1], np.float32), "first": np.array([0])}
    proto = model(
        ("MatMul", "x inp", "h"),
        ("MatMul", "h r", "logits"),
        ("ArgMax", "logits", "i", {"axis": -1, "keepdims": 0}),
        ("OneHot", "i depth off_on", "hot"),
        ("Gather", "hot first", "gate", {"axis": -1}),
        ("MatMul", "h w", "e"),
        ("Mul", "e gate", "m"),
        ("MatMul", "m v", "y"),
        inputs={"x": ("n", 12, 32)},
        weights=weights | numbers,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    feeds = [{"x": rng.standard_normal((1, 12, 32)).astype(np.float32)} for _ in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET, ())
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, INPUTS))
    ready = prepared(loaded, layers, seen, planning(Recipe()), TARGET)
    assert {one.node: one.rule for one in ready.large.refused} == {"LOGITS": "router", "H": "router-input"}
    assert [one.node for one in ready.large.found] == ["E", "Y"]


def test_what_was_shown_of_the_same_model_is_not_run_again(
    loaded: models.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 12, 32)).astype(np.float32)} for i in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET, ())
    parts = [open_source(part, INPUTS) for part in (feeds[:5], feeds[5:])]
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), parts[0], choose=parts[1])
    asked: list[list[str]] = []

    def counted(model: models.Model, names: list[str], samples: Any) -> dict[str, float]:
        asked.append(names)
        return peaks(model, names, samples)

    monkeypatch.setattr("qcompiler.planning.ready.peaks", counted)
    options = planning(Recipe())
    first = prepared(loaded, layers, seen, options, TARGET)
    again = prepared(loaded, layers, seen, options, TARGET, like=first)
    assert asked == [["x", "h"]]
    assert again.offers == first.offers
    assert again.shapes is first.shapes
    other = prepared(models.copy(loaded), layers, seen, options, TARGET, like=first)
    assert asked == [["x", "h"]] * 2  # of another model nothing is known
    assert other.offers == first.offers
