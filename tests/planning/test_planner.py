"""choose: from histograms and samples to the plan, with reasons, figures and ranges that say where they come from."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import calibrators
from qcompiler.calibrators.auto import AUTO_RANGES, offered
from qcompiler.compiler.ask import planning
from qcompiler.data.source import open_source
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.placement import candidates
from qcompiler.planning.planner import make_plan
from qcompiler.planning.search.goal import DEFAULT, DEFAULT_DROP, METRIC, SQNR
from qcompiler.planning.search.take import Pinned, at_point
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import QfemTable, SafetyTable
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import observe
from qcompiler.statistics.points import Points
from qcompiler.target import DType, parse_target
from qcompiler.verification.metrics.halves import MetricHalves
from tests.kit.rewrite import model

TARGET = parse_target("tensorrt-rtx")
INPUTS: Inputs = {"x": (np.dtype(np.float32), ("n", 12, 32))}


@pytest.fixture
def loaded(tmp_path: Path) -> models.Model:
    """Two projections of x, their product, a big layer, a tiny one."""
    rng = np.random.default_rng(0)
    shapes = {"wq": (32, 32), "wk": (32, 32), "w1": (12, 64), "w2": (64, 8)}
    proto = model(
        ("MatMul", "x wq", "q"),
        ("MatMul", "x wk", "k"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "s"),
        ("MatMul", "s w1", "h"),
        ("MatMul", "h w2", "y"),
        inputs={"x": ("n", 12, 32)},
        weights={name: (rng.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


def chosen(loaded: models.Model, recipe: Recipe, *, spike: float = 1.0) -> Chosen:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 12, 32)).astype(np.float32)} for _ in range(8)]
    for feed in feeds:
        feed["x"][0, 0, 0] *= spike
    return chosen_on(loaded, recipe, feeds, INPUTS)


def chosen_on(loaded: models.Model, recipe: Recipe, feeds: list[dict[str, Any]], inputs: Inputs) -> Chosen:
    layers = candidates.find_candidates(loaded.graph, TARGET, recipe.keep)
    source = open_source(feeds, inputs)
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), source)
    return make_plan(loaded, layers, seen, planning(recipe), TARGET)


def test_every_linear_node_has_a_decision_with_a_reason_in_graph_order(loaded: models.Model) -> None:
    plan = chosen(loaded, Recipe()).plan
    assert [(one.node, one.rule) for one in plan] == [
        ("Q", "linear"), ("K", "linear"), ("S", "attention"), ("H", "tiny"), ("Y", "tiny"),
    ]  # fmt: skip
    assert [one.precision for one in plan] == [DType.INT8, DType.INT8, DType.FP16, DType.FP16, DType.FP16]
    assert all(one.why for one in plan)
    assert [one.macs for one in plan] == [12 * 32 * 32, 12 * 32 * 32, 12 * 12 * 32, 12 * 12 * 64, 12 * 64 * 8]


def test_what_shares_an_activation_shares_a_quantizer_and_each_weight_has_its_axis(loaded: models.Model) -> None:
    plan = chosen(loaded, Recipe()).plan
    assert plan.quantizers.keys() == {"x"}
    assert plan.axes == {"Q": 1, "K": 1}
    assert chosen(loaded, Recipe(weight_granularity="tensor")).plan.axes == {"Q": None, "K": None}


def test_a_named_calibrator_is_the_one_that_is_used(loaded: models.Model) -> None:
    for text in ("minmax", "entropy", "percentile{p=99.9}"):
        found = chosen(loaded, Recipe(calibrator=text, safety=SafetyTable(target_sqnr_db=60)))
        for one in found.plan.quantizers.values():
            assert one.calibrator == str(calibrators.parse(text))
            assert one.dtype is DType.INT8
            assert 0 < one.amax <= (one.observed or 0)
    minmax = chosen(loaded, Recipe(calibrator="minmax")).plan.quantizers["x"]
    assert minmax.amax == minmax.observed


def test_a_layer_that_the_safety_net_gives_back_says_what_it_did(loaded: models.Model) -> None:
    found = chosen(loaded, Recipe(safety=SafetyTable(target_sqnr_db=90, min_share=0)))
    for name in ("Q", "K"):
        one = found.plan.decisions[name]
        assert (one.rule, one.precision) == ("sensitive", DType.FP16)
        assert "dB" in one.why
        assert one.figures["alone_sqnr_db"] < 90
    assert found.plan.quantizers == {}
    assert found.plan.axes == {}
    assert found.net.restored == ("x",)


def test_auto_takes_the_range_that_the_outputs_like_best(loaded: models.Model) -> None:
    strict = SafetyTable(target_sqnr_db=60, min_share=1)
    auto = chosen(loaded, Recipe(safety=strict), spike=60)
    single = [
        chosen(loaded, Recipe(calibrator=text, safety=strict), spike=60)
        for text in ("mse", "percentile{p=99.99}", "minmax")
    ]
    assert auto.net.curve[-1].sqnr_db >= max(one.net.curve[-1].sqnr_db for one in single) - 0.1


def test_nothing_to_quantize_is_a_plan_too(loaded: models.Model) -> None:
    found = chosen(loaded, Recipe(keep=(".",)))
    assert {one.rule for one in found.plan} == {"kept"}
    assert found.plan.quantized() == []
    assert found.net.curve == ()


def test_ranges_are_offered_in_the_order_of_the_calibrators() -> None:
    histogram = Histogram.of(np.random.default_rng(2).standard_normal(10_000).astype(np.float32))
    ranges, spelled = offered("auto", {"x": histogram})
    assert len(ranges["x"]) == len(spelled["x"]) == len(AUTO_RANGES)
    assert ranges["x"][0] == calibrators.parse("mse").range(histogram)
    assert spelled["x"][0].startswith("mse")
    flat = Histogram.of(np.ones(100, np.float32))
    ranges, spelled = offered("auto", {"x": flat})
    assert max(ranges["x"]) == pytest.approx(1)
    assert offered("minmax", {"x": histogram}) == ({"x": [histogram.amax]}, {"x": ["minmax"]})


def two_tails(folder: Path, rng: np.random.Generator) -> models.Model:
    """A product of a bell-shaped activation and one of an activation with heavy tails, each an output."""
    values = {name: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for name in ("w1", "w2")}
    proto = model(
        ("MatMul", "bell w1", "y1"),
        ("MatMul", "tails w2", "y2"),
        inputs={"bell": ("n", 256, 64), "tails": ("n", 256, 64)},
        outputs=("y1", "y2"),
        weights=values,
        opset=21,
    )
    onnx.save(proto, folder / "two.onnx")
    return models.load(folder / "two.onnx")


def chosen_of_two(folder: Path, recipe: Recipe) -> Chosen:
    rng = np.random.default_rng(3)
    loaded = two_tails(folder, rng)
    shape = (1, 256, 64)
    feeds = [
        {"bell": rng.standard_normal(shape).astype(np.float32), "tails": rng.standard_t(1.5, shape).astype(np.float32)}
        for _ in range(8)
    ]
    target = recipe.resolve()
    inputs: Inputs = {name: (np.dtype(np.float32), ("n", 256, 64)) for name in ("bell", "tails")}
    layers = candidates.find_candidates(loaded.graph, target)
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, inputs))
    return make_plan(loaded, layers, seen, planning(recipe), target)


def test_the_bell_is_quantized_to_int8_and_the_heavy_tails_to_fp8_with_both_figures(tmp_path: Path) -> None:
    strict = SafetyTable(target_sqnr_db=60, min_share=1)
    recipe = Recipe(precision="auto:int8,fp8", target="tensorrt-rtx:sm89", safety=strict)
    plan = chosen_of_two(tmp_path, recipe).plan
    assert [(one.node, one.precision) for one in plan] == [("Y1", DType.INT8), ("Y2", DType.FP8)]
    assert {name: one.dtype for name, one in plan.quantizers.items()} == {"bell": DType.INT8, "tails": DType.FP8}
    assert plan.quantizers["tails"].calibrator in ("mse{format=fp8}", "minmax")
    assert plan.axes == {"Y1": 1, "Y2": None}
    for one in plan:
        assert {"int8_db", "fp8_db", "int8_us", "fp8_us", "fp16_us"} <= one.figures.keys()
        assert "int8: alone" in one.why
        assert "us in fp8" in one.why
        assert one.why.endswith("on sm89")
    assert plan.decisions["Y1"].figures["int8_db"] > plan.decisions["Y1"].figures["fp8_db"] + 3
    assert plan.decisions["Y2"].figures["fp8_db"] > plan.decisions["Y2"].figures["int8_db"] + 3


def test_fp8_alone_needs_no_costs(tmp_path: Path) -> None:
    found = chosen_of_two(tmp_path, Recipe(precision="fp8", target="tensorrt-rtx:sm89", calibrator="mse"))
    assert {one.precision for one in found.plan} == {DType.FP8}
    assert {one.calibrator for one in found.plan.quantizers.values()} == {"mse{format=fp8}"}
    assert found.net.costs == {}


def test_a_gpu_without_fp8_is_not_offered_it(tmp_path: Path) -> None:
    found = chosen_of_two(
        tmp_path, Recipe(precision="auto", target="tensorrt-rtx:sm86", safety=SafetyTable(min_share=1))
    )
    assert DType.FP8 not in {one.precision for one in found.plan}
    assert all("fp8" not in one.why for one in found.plan)


def test_high_precision_that_is_faster_is_a_choice_of_its_own(tmp_path: Path) -> None:
    found = chosen_of_two(tmp_path, Recipe(precision="auto:int8,fp16", target="tensorrt-rtx:sm89"))
    costs = found.net.costs["bell"]
    assert costs["high"] < costs["int8"]  # 64 columns: writing accumulators in FP32 costs more than it saves
    assert {one.rule for one in found.plan} == {"cost"}
    assert all(one.precision is DType.FP16 and "no format is faster" in one.why for one in found.plan)


def test_the_floor_is_a_share_of_what_can_be_quantized(tmp_path: Path) -> None:
    """The product of two activations has half of the work here, and leaves no room for anything if it counts."""
    rng = np.random.default_rng(0)
    proto = model(
        ("MatMul", "x wq", "q"),
        ("Relu", "x", "r"),
        ("MatMul", "r wk", "k"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "y"),
        inputs={"x": ("n", 64, 32)},
        weights={name: (rng.standard_normal((32, 32)) / 6).astype(np.float32) for name in ("wq", "wk")},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    inputs: Inputs = {"x": (np.dtype(np.float32), ("n", 64, 32))}
    feeds = [{"x": rng.standard_normal((1, 64, 32)).astype(np.float32)} for _ in range(4)]
    layers = candidates.find_candidates(loaded.graph, TARGET, ())
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, inputs))

    def restored(share: float) -> int:
        recipe = Recipe(safety=SafetyTable(target_sqnr_db=90, min_share=share))
        return len(make_plan(loaded, layers, seen, planning(recipe), TARGET).net.restored)

    assert [restored(share) for share in (0.4, 0.6)] == [1, 0]


def test_scores_of_the_metric_are_handed_to_the_next_try(loaded: models.Model) -> None:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 12, 32)).astype(np.float32)} for _ in range(4)]
    for feed in feeds:
        feed["x"][0, 0] *= 60
    layers = candidates.find_candidates(loaded.graph, TARGET)
    names, source = list(layers.by_activation), open_source(feeds, INPUTS)
    seen = observe(loaded, Points.of(outliers=dict.fromkeys(names, -1)), source)
    asked: list[int] = []

    def score(run: Any) -> float:
        asked.append(len(asked))
        return float(np.mean([run(feed)["y"].mean() for feed in feeds * 2]))

    options = planning(
        Recipe(metric="m.py:f", max_drop=0, safety=SafetyTable(target_sqnr_db=80), qfem=QfemTable(budget=1.0))
    )
    first = make_plan(loaded, layers, seen, options, TARGET, metric=partial(MetricHalves, score))
    assert None in first.scores  # that of the float model
    assert len(first.scores) > 1
    once = len(asked)
    again = make_plan(loaded, layers, seen, options, TARGET, metric=partial(MetricHalves, score), scores=first.scores)
    assert again.scores == first.scores
    assert len(asked) - once < once


@pytest.mark.parametrize(
    ("recipe", "kind", "target"),
    [
        (Recipe(), DEFAULT, 25.0),
        (Recipe(min_sqnr=10.0), SQNR, 10.0),  # the request is the goal
        (Recipe(min_sqnr=10.0, safety=SafetyTable(target_sqnr_db=30)), SQNR, 30.0),
        (Recipe(min_sqnr=40.0, safety=SafetyTable(target_sqnr_db=30)), SQNR, 40.0),
    ],
)
def test_the_request_is_the_goal(loaded: models.Model, recipe: Recipe, kind: str, target: float) -> None:
    found = chosen(loaded, recipe)
    assert found.goal is not None
    assert (found.goal.goal.kind, found.goal.goal.target, found.net.target_db) == (kind, target, target)


@pytest.mark.parametrize(
    ("recipe", "lines"),
    [
        (Recipe(), (0.9, 20.0, 0.8)),  # in doubt, a lower share may stay quantized
        (Recipe(min_share=0.85), (0.9, 20.0, 0.85)),
        (Recipe(safety=SafetyTable(min_share=0.95)), (0.95, -math.inf, 0.8)),  # who says how much means it
        (Recipe(safety=SafetyTable(target_sqnr_db=15.0)), (0.9, -math.inf, 0.8)),
    ],
)
def test_in_doubt_less_may_stay_quantized_unless_the_user_says_how_much(
    tmp_path: Path, recipe: Recipe, lines: tuple[float, float, float]
) -> None:
    weight = (np.random.default_rng(0).standard_normal((32, 32)) / 6).astype(np.float32)
    proto = model(("MatMul", "x w", "y"), inputs={"x": ("n", 12, 32)}, weights={"w": weight})
    onnx.save(proto, tmp_path / "m.onnx")
    found = chosen(models.load(tmp_path / "m.onnx"), recipe).goal
    assert found is not None
    assert (found.goal.min_share, found.goal.doubtful_db, found.goal.least_share) == pytest.approx(lines)


@pytest.mark.parametrize(
    ("recipe", "likelihood"),
    [
        (Recipe(), True),
        (Recipe(min_sqnr=20.0), False),  # a number of dB is one of powers
        (Recipe(safety=SafetyTable(target_sqnr_db=30.0)), False),
    ],
)
def test_where_a_token_is_drawn_by_the_output_its_likelihood_is_the_goal(
    tmp_path: Path, recipe: Recipe, likelihood: bool
) -> None:
    random = np.random.default_rng(0)
    weights = {"table": random.standard_normal((40, 32)), "w": random.standard_normal((32, 40)) / 6}
    proto = model(
        ("Gather", "table ids", "h"),
        ("MatMul", "h w", "logits"),
        inputs={"ids": (np.int64, ("n", 12))},
        outputs=("logits",),
        weights={name: value.astype(np.float32) for name, value in weights.items()},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = [{"ids": random.integers(0, 40, (1, 12))} for _ in range(8)]
    inputs: Inputs = {"ids": (np.dtype(np.int64), ("n", 12))}
    found = chosen_on(models.load(tmp_path / "m.onnx"), recipe, feeds, inputs).goal
    assert found is not None
    assert found.goal.likelihood is found.to_json()["likelihood"] is likelihood
    assert recipe != Recipe() or (found.goal.target, found.goal.doubtful_db) == (25.0, 20.0)


def test_what_cannot_be_quantized_makes_both_floors_one(loaded: models.Model) -> None:
    found = chosen(loaded, Recipe()).goal  # of which the product of two activations has nearly half of the work
    assert found is not None
    assert found.goal.least_share == found.goal.min_share < 0.8


def test_a_metric_is_the_goal_and_dB_are_not(loaded: models.Model) -> None:  # noqa: N802
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 12, 32)).astype(np.float32)} for _ in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET)
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, INPUTS))
    safety = SafetyTable(target_sqnr_db=90)

    def mean(run: Any) -> float:
        return 100 + float(np.mean([run(feed)["y"].mean() for feed in feeds]))

    def plan(recipe: Recipe, metric: Any = None) -> Chosen:
        return make_plan(
            loaded, layers, seen, planning(recipe), TARGET, metric=metric and partial(MetricHalves, metric)
        )

    assert plan(Recipe(safety=safety), None).net.restored == ()  # the floor on the share
    assert plan(Recipe(min_sqnr=90.0)).net.restored == ("x",)
    for recipe, limit in ((Recipe(metric="m.py:f"), DEFAULT_DROP), (Recipe(metric="m.py:f", max_drop=0.02), 0.02)):
        found = plan(recipe.replace(safety=safety), mean)
        assert found.net.restored == ()
        assert found.goal is not None
        assert (found.goal.goal.kind, found.goal.goal.target) == (METRIC, limit)
        assert found.goal.to_json()["met"] is True
    both = plan(Recipe(metric="m.py:f", max_drop=0.02, min_sqnr=90.0), mean)
    assert both.net.restored == ("x",)


def test_a_pinned_plan_is_made_without_a_search(loaded: models.Model) -> None:
    first = chosen(loaded, Recipe(safety=SafetyTable(target_sqnr_db=90, min_share=0)))
    assert first.net.restored == ("x",)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 12, 32)).astype(np.float32)} for _ in range(8)]
    layers = candidates.find_candidates(loaded.graph, TARGET)
    seen = observe(loaded, Points.of(histograms=list(layers.by_activation)), open_source(feeds, INPUTS))
    runs: list[int] = []
    pinned = Pinned(at_point(first.net, 0), first.spared)
    again = make_plan(loaded, layers, seen, planning(Recipe()), TARGET, runs.append, pinned=pinned)
    assert [one.precision for one in again.plan][:2] == [DType.INT8, DType.INT8]
    assert again.plan.quantizers["x"].amax == first.net.front[0].uses["x"].amax
    assert runs == []


def test_a_front_knows_the_bytes_of_its_weights(loaded: models.Model) -> None:
    for objective in ("share", "size"):
        found = chosen(loaded, Recipe(objective=objective, min_sqnr=90.0))
        assert found.goal is not None
        assert found.goal.goal.objective == objective
        assert [(one.size, one.restored) for one in found.net.front] == [
            (2 * 32 * 32, ()), (2 * 2 * 32 * 32, ("x",)),
        ]  # fmt: skip
