"""What choosing alphas takes: arithmetic on recorded rows, of which no count of runs of the model tells.

One group of middling size is chosen for on rows that are made up, with a clock; the others take as much more as there
is more to multiply for them:

    rows · channels · outputs,  outputs ≤ 256 of each layer,  an error for every alpha that is tried
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.numerics.rounding import Format
from qcompiler.outliers.smooth_quant.alpha import Layers
from qcompiler.plan import Candidate
from qcompiler.statistics.outliers import FOLDS
from qcompiler.statistics.rows import COLUMNS, Rows, rows_each
from qcompiler.statistics.timed import Timed

if TYPE_CHECKING:
    pass

_FEW = (0.5, 0.85)  # alphas that are tried with the clock
_ERRORS = (1 + len(_FEW) + 1) / (1 + 4 + 2)  # of those of a choice: none, the middle one and its like, halfway


@dataclass(frozen=True, eq=False)
class _Group:
    """Layers that read one activation: their weights, float32 [C, outputs], and how many rows there will be."""

    weights: linear.Matrices
    per_channel: Sequence[bool]
    rows: int

    @property
    def work(self) -> int:
        """Multiplications of one error."""
        return self.rows * sum(rows * min(columns, COLUMNS) for rows, columns in self.weights.shapes)


def seconds_of_choice(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    known: Timed,
    *,
    calibrator: str,
    per_channel: bool,
    format: Format,
) -> float:
    """Seconds in which the layers' own errors choose an alpha for each group.

    Args:
        model: the float model, normalised.
        groups: layers by the activation that they share; those that products read are counted.
        known: one feed, and how many there are.
        calibrator: how ranges will be chosen.
        per_channel: weight scales per output channel, else per tensor.
        format: what the layers will compute in.
    """
    found = sorted(_groups(model, groups, known, per_channel=per_channel), key=lambda one: one.work)
    if not found:
        return 0.0
    middle = found[len(found) // 2]
    started = time.perf_counter()
    _made_up(middle, calibrator, format).choose(_FEW)
    spent = time.perf_counter() - started
    return spent / _ERRORS * sum(one.work for one in found) / middle.work


def _groups(
    model: models.Model, groups: Mapping[str, Sequence[Candidate]], known: Timed, *, per_channel: bool
) -> list[_Group]:
    """The groups whose weights are matrices, and whose activation was seen."""
    nodes = {node.name: node for node in model.graph.nodes}
    seen = known.seen.outliers
    channels = sum(len(seen[name].channels) for name in groups if name in seen)
    most, kept = rows_each(channels, max(round(known.kept), 1)), max(round(known.kept), 1)
    found = []
    for name, members in groups.items():
        weights = linear.Matrices([nodes[one.node] for one in members])
        if name not in seen or len(weights.shapes) < len(members) or not len(seen[name].channels):
            continue
        rows = known.seen.histograms[name].count // len(seen[name].channels)
        scaled = [one.axis is not None and per_channel for one in members]
        found.append(_Group(weights, scaled, kept * max(1, min(most, rows))))
    return found


def _made_up(group: _Group, calibrator: str, format: Format) -> Layers:
    """The layers with rows of noise, as many as there will be."""
    draws, width = np.random.default_rng(0), group.weights.shapes[0][0]
    values = draws.standard_normal((group.rows, width), np.float32)
    folds = np.arange(group.rows) % FOLDS
    rows = Rows(values, np.ones(group.rows, np.float32), folds)
    reached = np.abs(values).max(axis=0).astype(np.float64)
    others = {fold: reached for fold in range(FOLDS) if (folds == fold).any()}
    return Layers(rows, group.weights, group.per_channel, reached, calibrator=calibrator, format=format, others=others)
