"""Layers whose results are given: what an error in them does to the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.planning.simulation.probe import Probe
from tests.kit.planning.probing import FIRST, SECOND, chained, feeds, probe
from tests.kit.rewrite import to_graph


def test_exact_results_make_no_noise_and_wrong_ones_do() -> None:
    samples = feeds(3)
    one = probe(samples)
    exact = [[feed["x"] @ FIRST] for feed in samples]
    assert one.noise({}) == 0.0
    assert one.noise({"x": exact}) < 1e-9
    assert one.noise({"x": [[np.zeros_like(value)] for (value,) in exact]}) == pytest.approx(1.0)


def test_what_the_layers_read_is_kept_by_feed() -> None:
    samples = feeds(2)
    one = probe(samples)
    for index, feed in enumerate(samples):
        assert np.array_equal(one.inputs["x"][index], feed["x"])
        np.testing.assert_allclose(one.inputs["r"][index], np.maximum(feed["x"] @ FIRST, 0), rtol=1e-4, atol=1e-4)


def test_given_results_are_what_the_layers_behind_read() -> None:
    samples = feeds(3)
    one = probe(samples)
    rng = np.random.default_rng(1)
    other = [rng.standard_normal((4, 16)).astype(np.float32) for _ in samples]
    exact = np.stack([np.maximum(feed["x"] @ FIRST, 0) @ SECOND for feed in samples]).astype(np.float64)
    found = np.stack([np.maximum(value, 0) @ SECOND for value in other])
    wanted = ((found - exact) ** 2).sum() / (exact**2).sum()
    assert one.noise({"x": [[value] for value in other]}) == pytest.approx(wanted, rel=1e-4)


def test_a_run_with_results_leaves_the_next_one_alone() -> None:
    samples = feeds(2)
    one = probe(samples)
    zeros = [[np.zeros((4, 16), np.float32)] for _ in samples]
    assert one.noise({"r": zeros}) == pytest.approx(1.0)
    assert one.noise({}) == 0.0


def test_without_folds_no_sample_belongs_to_one() -> None:
    one = probe(feeds(2))
    model = models.Model(to_graph(chained()), {}, None, 10)
    assert Probe(model, {"x": ["H"]}, feeds(2)).folds == [-1, -1]
    assert len(one.folds) == 2
