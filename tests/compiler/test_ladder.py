"""The list of rungs, what says that each can help, and what the manifest tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile, ladder
from qcompiler.compiler.ladder import EQUALIZE, FP8, HIGH, LADDER, OTHER_RANGES, QFEM, SMOOTH_QUANT, Seen
from qcompiler.outliers.smooth_quant.alpha import Choice
from qcompiler.outliers.smooth_quant.trials import Trials, smoothable
from qcompiler.planning.climb import Standing
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import QfemTable, SafetyTable, SmoothQuantTable
from tests.kit import glu
from tests.kit.subjects import of_net
from tests.kit.vision import planted

NAMES = ["ranges", "other_ranges", "equalize", "smooth_quant", "fit_weights", "shift", "qfem", "fp8", "high_precision"]
KEYS = ["name", "tried", "why", "sqnr_db", "gain_db", "share", "seconds", "runs", "kept"]


def seen(proto: onnx.ModelProto, feeds: Sequence[Any], folder: Path, **recipe: Any) -> Seen:
    standing = of_net("calibrate", proto, feeds, folder, **recipe)
    asked, subject = standing.asked, standing.subject
    local: Mapping[str, Choice] = {}
    if asked.smooth_quant is not None and smoothable(subject.layers.found, subject.seen, asked.smooth_quant.table):
        local = Trials(subject.model, subject.layers.found, subject.seen, asked.smooth_quant, subject.scope).choices()
    return Seen(subject, asked.planning, asked.target, asked.smooth_quant, local)


def quantized(proto: onnx.ModelProto, feeds: Sequence[Any], folder: Path, **recipe: Any) -> compile.CompileResult:
    onnx.save(proto, folder / "float.onnx")
    return compile.quantize(folder / "float.onnx", data=feeds, recipe=Recipe(**recipe), output=folder / "q.onnx")


def rungs(result: compile.CompileResult) -> Mapping[str, Mapping[str, Any]]:
    rows = result.manifest["rungs"]
    assert [row["name"] for row in rows] == NAMES
    assert all(list(row) == KEYS for row in rows)
    assert all(row["why"] for row in rows)
    for row in rows:
        if not row["tried"]:
            assert row["sqnr_db"] is row["gain_db"] is row["runs"] is None
    return {row["name"]: row for row in rows}


def test_the_order_is_that_of_the_list() -> None:
    assert [one.name for one in LADDER] == NAMES
    assert all(one.does for one in LADDER)


@pytest.mark.parametrize("seed", [0, 1])
def test_smoothing_is_promised_where_channels_stand_out_and_not_where_none_does(tmp_path: Path, seed: int) -> None:
    flat = SMOOTH_QUANT.helps(seen(glu.stack(seed=seed), glu.feeds(16, seed=seed), tmp_path))
    assert not flat.can
    assert flat.why.startswith("on recorded rows, dividing channels out lowers the errors")
    proto = glu.stack(seed=seed, channels=glu.OUTLIERS)
    assert SMOOTH_QUANT.helps(seen(proto, glu.feeds(16, seed=seed), tmp_path)).can


def test_smoothing_is_not_promised_where_there_is_nothing_to_smooth(tmp_path: Path) -> None:
    one = seen(planted.net(factor=100.0), planted.feeds(8), tmp_path)
    assert SMOOTH_QUANT.helps(one).why == "no layer may be smoothed: no product reads channels that were observed"
    off = seen(glu.stack(layers=1), glu.feeds(8), tmp_path, smooth_quant=SmoothQuantTable(alpha="off"))
    assert SMOOTH_QUANT.helps(off).why == "smoothing is off"


@pytest.mark.parametrize("kind", planted.NETS)
def test_equalization_is_promised_where_neighbours_differ(tmp_path: Path, kind: str) -> None:
    assert EQUALIZE.helps(seen(planted.net(kind, factor=100.0), planted.feeds(8), tmp_path)).can
    alike = EQUALIZE.helps(seen(planted.net(kind), planted.feeds(8), tmp_path))
    assert not alike.can
    assert "would change the errors of all layers" in alike.why
    none = EQUALIZE.helps(seen(planted.net(kind, act="Sigmoid"), planted.feeds(8), tmp_path))
    assert none.why.startswith("no tensor lies between two convolutions")


def test_qfem_needs_spikes(tmp_path: Path) -> None:
    assert QFEM.helps(seen(glu.stack(layers=2, spiking=(1,)), glu.feeds(8), tmp_path)).can
    calm = seen(glu.stack(layers=2), glu.feeds(8), tmp_path)
    assert QFEM.helps(calm).why.startswith("no spikes: ")
    off = seen(glu.stack(layers=2), glu.feeds(8), tmp_path, qfem=QfemTable(alpha="off"))
    assert QFEM.helps(off).why == "QFeM is off"


def test_the_others_go_by_what_was_asked_for(tmp_path: Path) -> None:
    one = seen(glu.stack(layers=1), glu.feeds(8), tmp_path, calibrator="mse")
    assert not OTHER_RANGES.helps(one).can
    assert not FP8.helps(one).can
    assert HIGH.helps(one).can
    both = seen(glu.stack(layers=1), glu.feeds(8), tmp_path, precision="auto:int8,fp8", target="tensorrt-rtx:sm89")
    assert OTHER_RANGES.helps(both).can
    assert FP8.helps(both).can
    old = seen(glu.stack(layers=1), glu.feeds(8), tmp_path, precision="auto:int8", target="tensorrt-rtx:sm80")
    assert not FP8.helps(old).can


def test_a_gain_is_enough_where_it_reaches_the_goal_or_is_noticed(tmp_path: Path) -> None:
    one = seen(glu.stack(layers=1), glu.feeds(8), tmp_path)
    near = Seen(one.subject.with_(standing=Standing(25.0, 24.5, 24.5, 1.0)), one.planning, one.target)
    far = Seen(one.subject.with_(standing=Standing(25.0, 5.0, 5.0, 1.0)), one.planning, one.target)
    assert near.enough(0.6)
    assert not far.enough(0.6)
    assert far.enough(1.0)
    assert not near.enough(0.1)
    met = Seen(one.subject.with_(standing=Standing(25.0, 26.0, 26.0, 1.0)), one.planning, one.target)
    assert not met.enough(0.6)
    assert met.enough(1.0)


def mlp(seed: int = 0, widths: Sequence[int] = (60, 192, 192, 96, 32)) -> onnx.ModelProto:
    """Products with a Relu in between, drawn as He et al. do: channels differ by chance only, about twofold."""
    rng, nodes, weights = np.random.default_rng(seed), [], []
    for at, (before, behind) in enumerate(pairwise(widths)):
        drawn = rng.normal(0, (2 / before) ** 0.5, (before, behind)).astype(np.float32)
        weights += [onnx.numpy_helper.from_array(drawn, f"w{at}")]
        weights += [onnx.numpy_helper.from_array(rng.normal(0, 0.1, behind).astype(np.float32), f"b{at}")]
        nodes.append(onnx.helper.make_node("Gemm", [f"x{at}", f"w{at}", f"b{at}"], [f"a{at}"], f"gemm{at}"))
        nodes.append(onnx.helper.make_node("Relu", [f"a{at}"], [f"x{at + 1}"], f"relu{at}"))
    last = len(widths) - 1
    del nodes[-1]
    x = onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["rows", widths[0]])
    y = onnx.helper.make_tensor_value_info(f"a{last - 1}", onnx.TensorProto.FLOAT, ["rows", widths[-1]])
    graph = onnx.helper.make_graph(nodes, "mlp", [x], [y], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def rows(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x0": rng.normal(0, 1, (64, 60)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("goal", [25.0, 35.0])
def test_channels_that_differ_by_chance_are_divided_out_below_the_goal_and_above_it(
    tmp_path: Path, goal: float
) -> None:
    safety = SafetyTable(target_sqnr_db=goal)
    found = rungs(quantized(mlp(), rows(16), tmp_path, safety=safety))
    before = found["other_ranges"]["sqnr_db"]
    assert (before >= goal) == (goal == 25.0)
    assert found["smooth_quant"]["kept"]
    assert found["smooth_quant"]["gain_db"] > 0.2
    assert found["smooth_quant"]["share"] == found["ranges"]["share"]
    if before < goal:  # alphas are those for fitted weights, which stand behind them
        assert found["fit_weights"]["kept"]
        assert found["fit_weights"]["sqnr_db"] > before + 1


def test_above_the_goal_smoothing_is_left_where_time_is_short(tmp_path: Path) -> None:
    found = rungs(quantized(mlp(), rows(16), tmp_path, effort="quick"))
    assert found["smooth_quant"]["why"].startswith("the goal of 25 dB is met before it")


def test_what_meets_the_goal_ends_the_climb(tmp_path: Path) -> None:
    result = quantized(planted.net(), planted.feeds(16), tmp_path)
    found = rungs(result)
    assert found["ranges"]["sqnr_db"] >= 25
    assert found["ranges"]["kept"]
    assert found["ranges"]["runs"] > 0
    assert found["ranges"]["share"] == pytest.approx(1.0, abs=0.01)
    tried = [name for name in NAMES if found[name]["tried"]]
    assert tried in (["ranges"], ["ranges", "other_ranges"])  # these cost nothing where the model runs
    met = [name for name in NAMES[1:] if found[name]["why"].startswith("the goal of 25 dB is met before it")]
    assert met[-3:] == ["equalize", "qfem", "high_precision"]
    assert found["shift"]["why"].startswith("no activation lies to one side of zero")
    assert found["smooth_quant"]["why"].startswith("no layer may be smoothed")
    assert result.manifest["smooth_quant"] is None
    assert "smooth_quant" not in result.manifest["timings"]


def test_a_stack_without_outliers_is_not_smoothed_even_where_the_goal_is_missed(tmp_path: Path) -> None:
    safety = SafetyTable(target_sqnr_db=45.0)
    found = rungs(quantized(glu.stack(layers=3), glu.feeds(16), tmp_path, safety=safety))
    assert found["other_ranges"]["tried"]
    assert not found["smooth_quant"]["tried"]
    assert "dividing channels out lowers the errors" in found["smooth_quant"]["why"]
    assert not found["qfem"]["tried"]
    assert found["high_precision"]["tried"]
    assert found["high_precision"]["gain_db"] > 0
    assert found["high_precision"]["share"] < found["ranges"]["share"]


def test_planted_channels_and_spikes_are_climbed_one_behind_the_other(tmp_path: Path) -> None:
    proto = glu.stack(channels=glu.OUTLIERS, spiking=glu.SPIKING)
    found = rungs(quantized(proto, glu.feeds(16), tmp_path))
    kept = [name for name in NAMES if found[name]["kept"] and name not in ("fit_weights", "shift")]
    assert kept[:4] == ["ranges", "other_ranges", "smooth_quant", "qfem"]
    assert found["smooth_quant"]["gain_db"] > 5
    assert found["qfem"]["gain_db"] > 5
    assert not found["equalize"]["tried"]


@pytest.mark.parametrize("kind", planted.NETS)
def test_planted_convolutions_are_equalized_by_default(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = quantized(planted.net(kind), planted.feeds(16), tmp_path / "a")
    result = quantized(planted.net(kind, factor=100.0), planted.feeds(16), tmp_path / "b")
    found = rungs(result)
    assert found["other_ranges"]["sqnr_db"] < 12
    assert found["equalize"]["kept"]
    assert found["equalize"]["gain_db"] > 15
    assert not found["smooth_quant"]["tried"]
    assert result.plan.share() == pytest.approx(plain.plan.share())
    assert plain.verification is not None
    assert result.verification is not None
    reached, reference = (one.verification.outputs[0].sqnr_db or 0.0 for one in (result, plain))  # type: ignore[union-attr]
    assert reached > reference - 1.5


def test_without_data_there_is_no_ladder(tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "float.onnx")
    recipe = Recipe(precision="int8-weight", high_precision="fp32")
    result = compile.quantize(tmp_path / "float.onnx", recipe=recipe, output=tmp_path / "q.onnx")
    assert result.manifest["rungs"] == []


def test_figures_are_rounded_and_what_is_not_known_is_null() -> None:
    told = ladder.Told("ranges", True, "why", 25.12345, None, 0.98765432, 1.23456, 12, kept=True)
    assert told.to_json() == {
        "name": "ranges", "tried": True, "why": "why", "sqnr_db": 25.12, "gain_db": None, "share": 0.9877,
        "seconds": 1.235, "runs": 12, "kept": True,
    }  # fmt: skip
    assert ladder.record(told) == {"rungs": {"ranges": told.to_json()}}
