"""Rounding of every layer's weight: by which method, and what each then costs its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.statistics.hessian import ONE_FOLD
from qcompiler.statistics.observe import Observations
from qcompiler.weight_only.choice import Way
from qcompiler.weight_only.rounding import Rounding, methods, offered, watched
from qcompiler.weight_only.row_trials import CROSS_FITTED, HELD_OUT, Dealt, deal, record
from qcompiler.weight_only.storable import StorableLayer
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((64, 32)).astype(np.float32) for name in ("a", "b", "c")}
INPUTS: list[Feeds] = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(4)]
HELD: list[Feeds] = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(2)]
DEALT = Dealt(INPUTS, ONE_FOLD, INPUTS, HELD)
NODES = (("MatMul", "x a", "p"), ("MatMul", "x b", "q"), ("Concat", "p q", "r", {"axis": 1}), ("MatMul", "r c", "y"))
LAYERS = [
    StorableLayer("P", "MatMul", "x", 64, 32, "int4", 32),
    StorableLayer("Q", "MatMul", "x", 64, 32, "int8", None),
    StorableLayer("Y", "MatMul", "r", 64, 32, "int4", 32),
]


def rounding(method: str, **changes: Any) -> Rounding:
    graph = to_graph(model(*NODES, inputs={"x": (16, 64)}, weights=WEIGHTS))
    loaded = models.Model(graph, {}, None, 8)
    before = {one.node: one.activation for one in LAYERS}
    seen = changes.pop("seen", None)
    if seen is None:
        seen = record(loaded, {"x": -1, "r": -1}, DEALT)
    return Rounding(loaded, loaded, LAYERS, before, seen, {}, method, True, **changes)


def test_int8_beside_int4_is_rounded_by_its_own_grid() -> None:
    assert methods(LAYERS, "gptq") == {"P": "gptq", "Q": "mse", "Y": "gptq"}
    assert methods(LAYERS[1:2], "gptq") == {"Q": "gptq"}


def test_only_what_gptq_rounds_needs_a_hessian() -> None:
    assert watched(LAYERS, "awq+gptq") == {"x": 64, "r": 64}
    assert watched(LAYERS[:2], "gptq") == {"x": 64}
    assert watched(LAYERS, "awq") == {}


@pytest.mark.parametrize("method", ["rtn", "mse", "awq", "gptq", "awq+gptq"])
def test_every_layer_is_rounded_once_by_its_method(method: str) -> None:
    found = {one.layer.node: one for one in rounding(method).round(DEALT)}
    assert found.keys() == {"P", "Q", "Y"}
    assert {name: one.method for name, one in found.items()} == methods(LAYERS, method)
    for name, one in found.items():
        exact = WEIGHTS[{"P": "a", "Q": "b", "Y": "c"}[name]]
        assert one.weight_db == pytest.approx(sqnr_of(exact, blocks.dequantize(one.blocks) - exact), abs=1e-3)


def test_nearest_integers_gain_nothing_over_nearest_integers() -> None:
    (found,) = (one for one in rounding("rtn").round(None) if one.layer.node == "P")
    assert found.gain_db == 0.0
    assert (found.blocks.values == blocks.round_to_nearest(WEIGHTS["a"], 32, "int4").values).all()


def test_without_rows_there_is_nothing_but_the_weight_to_judge_by() -> None:
    for one in rounding("mse", seen={}).round(None):
        assert (one.output_db, one.gain_db) == (None, None)
        assert one.known_db == one.weight_db


def test_outputs_are_judged_by_what_they_compute() -> None:
    """On the rows that are held out, not on those that the weights were fitted to."""
    (found,) = (one for one in rounding("gptq").round(DEALT) if one.layer.node == "P")
    x = np.concatenate([one["x"] for one in HELD])
    exact = x @ WEIGHTS["a"]
    nearest = blocks.dequantize(blocks.round_to_nearest(WEIGHTS["a"], 32, "int4"))
    reached, plain = (sqnr_of(exact, x @ w - exact) for w in (blocks.dequantize(found.blocks), nearest))
    assert found.judged == HELD_OUT
    assert found.output_db == pytest.approx(reached, abs=1e-2)
    assert found.gain_db == pytest.approx(reached - plain, abs=1e-2)
    assert found.rows == 64


def test_auto_never_errs_more_than_the_best_of_the_others() -> None:
    reached = {
        method: {one.layer.node: one.known_db for one in rounding(method).round(DEALT)}
        for method in ("auto", "rtn", "mse", "gptq")
    }
    for name in ("P", "Y"):
        best = max(found[name] for method, found in reached.items() if method != "auto")
        assert reached["auto"][name] >= best - 1e-6


def test_white_rows_gain_nothing_by_gptq_and_nothing_is_claimed() -> None:
    for one in rounding("gptq").round(DEALT):
        if one.layer.node == "P":
            assert one.gain_db is not None
            assert -0.2 < one.gain_db < 0.5
            assert one.shrink is not None
            assert one.shrink > 0.5


def test_where_nothing_is_held_out_folds_judge_each_other() -> None:
    source = deal(INPUTS, Observations(kept=tuple(INPUTS), feeds=len(INPUTS)))
    seen = record(rounding("gptq").normal, {"x": -1, "r": -1}, source)
    for one in rounding("auto", seen=seen).round(source):
        assert one.judged == CROSS_FITTED
        assert one.gain_db is not None
        assert one.gain_db >= 0


def test_a_damping_that_was_asked_for_is_taken() -> None:
    for one in rounding("gptq", damp=0.01).round(DEALT):
        assert one.shrink is None


def test_auto_offers_what_a_format_gains_by() -> None:
    four, eight = LAYERS[0], LAYERS[1]
    assert offered(four, "auto") == (Way.NEAREST, Way.MSE, Way.CLIP, Way.GPTQ)
    assert offered(eight, "auto") == (Way.NEAREST, Way.MSE, Way.CLIP)
    assert offered(four, "auto", clipped=False) == (Way.NEAREST, Way.MSE, Way.GPTQ)
    assert offered(four, "awq", clipped=False) == (Way.NEAREST,)


def test_queries_and_keys_are_not_clipped() -> None:
    scoring = {one.layer.node: one for one in rounding("awq", scoring=frozenset({"P"})).round(DEALT)}
    nearest = blocks.round_to_nearest(WEIGHTS["a"], 32, "int4")
    np.testing.assert_array_equal(scoring["P"].blocks.scales, nearest.scales)


def test_runs_are_counted() -> None:
    seen: list[int] = []
    list(rounding("gptq").round(DEALT, seen.append))
    assert sum(seen) == len(INPUTS)
