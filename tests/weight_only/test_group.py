"""A group of layers is rounded from values alone, so it may be done anywhere."""

from __future__ import annotations

import numpy as np

from qcompiler.compiler.workers.parcel import opened, packed
from qcompiler.numerics import blocks
from qcompiler.statistics.hessian import Moments
from qcompiler.statistics.rows import Rows
from qcompiler.weight_only.choice import Layer, Settings, Way
from qcompiler.weight_only.group import Group, Rounder
from qcompiler.weight_only.row_trials import HELD_OUT, RowTrial, RowTrials

RNG = np.random.default_rng(5)
X = (RNG.standard_normal((256, 64)) @ RNG.standard_normal((64, 64))).astype(np.float32)  # channels that go together
W = RNG.standard_normal((64, 32)).astype(np.float32)


def rows(values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Rows:
    return Rows(values, np.ones(len(values), np.float32))


def group() -> Group:
    fitted, judge = X[:192], X[192:]
    moments = Moments((fitted.T @ fitted).astype(np.float64), len(fitted), 0.0, float(len(fitted)))
    seen = RowTrials(rows(fitted), (RowTrial(rows(fitted), rows(judge)),), HELD_OUT)
    layers = {"near": Layer(W, 32, "int4"), "best": Layer(W, 32, "int4")}
    return Group(layers, {"near": (Way.NEAREST,), "best": (Way.NEAREST, Way.GPTQ)}, (moments,), seen)


def test_each_layer_gets_the_best_of_its_ways() -> None:
    found = Rounder(Settings(half=True))(group())
    assert found["near"].way is Way.NEAREST
    assert found["best"].way is Way.GPTQ
    assert (found["best"].error or 1.0) < 0.7 * (found["near"].error or 0.0)


def test_it_is_the_same_behind_a_crossing() -> None:
    here = Rounder(Settings(half=True))(group())
    there = opened(packed(Rounder(Settings(half=True))(opened(packed(group())))))
    for name, one in here.items():
        assert np.array_equal(blocks.dequantize(one.blocks), blocks.dequantize(there[name].blocks))
        assert (one.way, one.error, one.shrink) == (there[name].way, there[name].error, there[name].shrink)
