"""Alphas judged by the outputs: layers whose results are given, and samples that nothing was chosen on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant.alpha import ALPHAS, Choice, Layers
from qcompiler.outliers.smooth_quant.refine import refine
from qcompiler.planning.simulation.probe import Probe
from qcompiler.statistics.outliers import FOLDS, Outliers, Tokens, fold_of
from qcompiler.statistics.rows import Rows
from tests.kit.rewrite import model, to_graph

Array = np.ndarray[Any, np.dtype[Any]]
RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
FIRST[0] *= 0.02  # what reads the outlier channel has small weights, as trained networks do


def feeds(count: int = 8) -> list[dict[str, Array]]:
    found = [{"x": np.random.default_rng(i).standard_normal((4, 16)).astype(np.float32)} for i in range(count)]
    for one in found:
        one["x"][:, 0] *= 60  # an outlier channel
    return found


def probe(samples: list[dict[str, Array]]) -> Probe:
    nodes = [("MatMul", "x a", "h"), ("Relu", "h", "r"), ("MatMul", "r b", "y")]
    graph = to_graph(model(*nodes, inputs={"x": (4, 16)}, weights={"a": FIRST, "b": SECOND}))
    return Probe(
        models.Model(graph, {}, None, 10), {"x": ["H"], "r": ["Y"]}, samples, [fold_of(one) for one in samples]
    )


def layers(name: str, one: Probe, weight: Array) -> Layers:
    values = np.concatenate(one.inputs[name])
    rows = Rows(values, np.ones(len(values), np.float32), np.repeat(one.folds, 4))
    channels = np.abs(values).max(axis=0).astype(np.float64)
    others = {fold: np.abs(values[rows.folds != fold]).max(axis=0).astype(np.float64) for fold in sorted({*one.folds})}
    return Layers(rows, [weight], [True], channels, others=others if len(others) > 1 else {})


def test_exact_results_make_no_noise_and_wrong_ones_do() -> None:
    samples = feeds(3)
    one = probe(samples)
    exact = [[feed["x"] @ FIRST] for feed in samples]
    assert one.noise({}) == 0.0
    assert one.noise({"x": exact}) < 1e-9
    assert one.noise({"x": [[np.zeros_like(value)] for (value,) in exact]}) == pytest.approx(1.0)


def test_the_group_that_matters_gets_an_alpha_and_gains_by_it() -> None:
    one = probe(feeds())
    found = {"x": layers("x", one, FIRST), "r": layers("r", one, SECOND)}
    nothing = Choice(None, np.ones(16, np.float32), 0.0)
    better = refine(one, {name: (group, nothing) for name, group in found.items()}, ["x", "r"], 200)
    assert better["x"].alpha in ALPHAS
    assert better["x"].gain_db > 3
    assert (better["x"].scales == found["x"].scales(better["x"].alpha or 0.0)).all()


def test_without_looks_nothing_changes() -> None:
    one = probe(feeds(2))
    nothing = Choice(None, np.ones(16, np.float32), 0.0)
    assert refine(one, {"x": (layers("x", one, FIRST), nothing)}, ["x"], 0) == {}


def test_scales_without_a_fold_do_not_see_its_samples() -> None:
    one = probe(feeds())
    group = layers("x", one, FIRST)
    fold = sorted({*one.folds})[0]
    mine = group.rows.folds == fold
    changed = group.rows.values.copy()
    changed[mine] *= 1000
    reached = np.abs(changed[~mine]).max(axis=0).astype(np.float64)
    assert (reached == group.others[fold]).all()
    assert not (group.scales(0.5, fold) == group.scales(0.5)).all()


def test_channels_are_kept_by_fold_whatever_the_batches() -> None:
    samples = [{"x": one["x"][None]} for one in feeds()]
    alone, together = Outliers(), Outliers()
    for one in samples:
        alone.update(one["x"], Tokens(one, [one]))
    batch = {"x": np.concatenate([one["x"] for one in samples])}
    together.update(batch["x"], Tokens(batch, samples))
    folds = {fold_of(one) for one in samples}
    assert len(folds) > 1
    for fold in range(FOLDS):
        assert (alone.without(fold) == together.without(fold)).all()
        others = [np.abs(one["x"]).max(axis=(0, 1)) for one in samples if fold_of(one) != fold]
        assert (alone.without(fold) == np.max(others, axis=0)).all()
