"""Correlated inputs with a few large channels, and a weight for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.statistics.rows import Rows
from qcompiler.weight_only.row_trials import CROSS_FITTED, HELD_OUT, RowTrial, RowTrials

Array = np.ndarray[Any, np.dtype[Any]]


DEPTH, WIDTH, SIZE = 96, 24, 32


def inputs(seed: int = 0, rows: int = 400) -> Array:
    """Correlated inputs with a few large channels."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, DEPTH)) @ (np.eye(DEPTH) + 0.3 * random.standard_normal((DEPTH, DEPTH)))
    mixed[:, :4] *= 12
    return mixed.astype(np.float32)


def weight(seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((DEPTH, WIDTH)).astype(np.float32)


def rows(x: Array) -> Rows:
    return Rows(x, np.ones(len(x), np.float32))


def held(fitted: Array, judge: Array) -> RowTrials:
    """Rows to fit to, and others that judge."""
    return RowTrials(rows(fitted), (RowTrial(rows(fitted), rows(judge)),), HELD_OUT)


def crossed(x: Array) -> RowTrials:
    """Two halves that judge each other."""
    one, two = rows(x[: len(x) // 2]), rows(x[len(x) // 2 :])
    return RowTrials(rows(x), (RowTrial(two, one), RowTrial(one, two)), CROSS_FITTED)
