"""Alphas judged by the outputs: layers whose results are given, and samples that nothing was chosen on."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.outliers.smooth_quant.alpha import ALPHAS, Choice
from qcompiler.outliers.smooth_quant.refine import RANGES, least_looks, refine
from tests.kit.planning.probing import FIRST, SECOND, feeds, layers, probe

FIRST[0] *= 0.02  # what reads the outlier channel has small weights, as trained networks do


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


@pytest.mark.parametrize("count", [1, 2])
def test_with_the_least_looks_one_group_gets_its_alpha(count: int) -> None:
    one = probe(feeds())
    names = ["x", "r"][:count]
    nothing = Choice(None, np.ones(16, np.float32), 0.0)
    found = {"x": layers("x", one, FIRST), "r": layers("r", one, SECOND)}
    choices = {name: (group, nothing) for name, group in found.items()}
    looks = least_looks(len(names), "int8")
    assert refine(one, choices, names, looks)
    assert not refine(one, choices, names, len(RANGES["int8"]) * len(ALPHAS))
