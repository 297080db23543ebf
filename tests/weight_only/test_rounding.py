"""Rounding of every layer's weight: by which method, and what each then costs its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.statistics.rows import Rows
from qcompiler.weight_only.rounding import Rounding, methods, watched
from qcompiler.weight_only.storable import StorableLayer
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((64, 32)).astype(np.float32) for name in ("a", "b", "c")}
INPUTS: list[Feeds] = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(4)]
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
    rows = {"x": Rows(np.concatenate([one["x"] for one in INPUTS]), np.ones(64, np.float32))}
    return Rounding(loaded, loaded, LAYERS, before, changes.pop("rows", rows), {}, method, True, **changes)


def test_int8_beside_int4_is_rounded_by_its_own_grid() -> None:
    assert methods(LAYERS, "gptq") == {"P": "gptq", "Q": "mse", "Y": "gptq"}
    assert methods(LAYERS[1:2], "gptq") == {"Q": "gptq"}


def test_only_what_gptq_rounds_needs_a_hessian() -> None:
    assert watched(LAYERS, "awq+gptq") == {"x": 64, "r": 64}
    assert watched(LAYERS[:2], "gptq") == {"x": 64}
    assert watched(LAYERS, "awq") == {}


@pytest.mark.parametrize("method", ["rtn", "mse", "awq", "gptq", "awq+gptq"])
def test_every_layer_is_rounded_once_by_its_method(method: str) -> None:
    found = {one.layer.node: one for one in rounding(method).round(INPUTS)}
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
    for one in rounding("mse", rows={}).round(None):
        assert (one.output_db, one.gain_db) == (None, None)
        assert one.known_db == one.weight_db


def test_outputs_are_judged_by_what_they_compute() -> None:
    (found,) = (one for one in rounding("gptq").round(INPUTS) if one.layer.node == "P")
    x = np.concatenate([one["x"] for one in INPUTS])
    exact = x @ WEIGHTS["a"]
    assert found.output_db == pytest.approx(sqnr_of(exact, x @ blocks.dequantize(found.blocks) - exact), abs=1e-2)
    assert found.gain_db is not None
    assert found.gain_db > 0


def test_runs_are_counted() -> None:
    seen: list[int] = []
    list(rounding("gptq").round(INPUTS, seen.append))
    assert sum(seen) == len(INPUTS)
