"""AWQ's scaling of a whole model: which activations it divides and by what, folded into what computes them.

The search is `qcompiler.awq`. The fold is the float rewrite of SmoothQuant and stands behind the equivalence check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import absorb, awq, weight_layers
from qcompiler import model as models
from qcompiler.passes.smooth_quant import SmoothQuant
from qcompiler.record import Rows
from qcompiler.target import DType
from qcompiler.weight_layers import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.observe import Observations
    from qcompiler.stages import Run

WORTH_DB = 0.05  # a smaller gain is not worth an edit
WORTH_DB_ELSE = 1.0  # with GPTQ, which finds such gains by itself, and in INT8, which errs little anyway


@dataclass(frozen=True, eq=False)
class Scaling:
    """What was divided, by name of the activation.

    Attributes:
        scales: what each is divided by, [K].
        gains: what that gains over rounding to nearest, in dB.
        left: why the others were not.
    """

    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def scale(
    run: Run,
    normal: models.Model,
    layers: Sequence[Layer],
    rows: Mapping[str, Rows],
    observed: Observations,
    method: str,
) -> tuple[models.Model, Scaling]:
    """The model with the scaling folded in, and what it is; `normal` itself where nothing gains by it.

    Args:
        run: its target says whether scales are numbers of FP16; reports are added.
        normal: normalised float model.
        layers: whose weights are stored.
        rows: recorded rows of what they read.
        observed: its kept samples are what the gate runs.
        method: `awq` or `awq+gptq`: from which gain on scaling is worth it.
    """
    found = Scaling()
    tensors, nodes = normal.graph.tensors(), {node.name: node for node in normal.graph.nodes}
    for name, members in weight_layers.by_activation(layers).items():
        few = [one for one in members if one.format == "int4"] or members  # INT8 siblings err next to nothing
        fold = absorb.plan(normal.graph, tensors[name], -1, split=True)
        if fold.why:
            found.left[name] = f"no producer can absorb it: {fold.why}"
            continue
        chosen = awq.search(
            rows[name],
            [weight_layers.matrix(nodes[one.node]) for one in few],
            size=few[0].size,
            format=few[0].format,
            classes=fold.classes,
            half=run.target.high_precision is not DType.FP32,
        )
        worth = WORTH_DB if method == "awq" and few[0].format == "int4" else WORTH_DB_ELSE
        if chosen.gain_db < worth:
            found.left[name] = f"no scaling gains {worth:g} dB"
            continue
        found.scales[name], found.gains[name] = chosen.scales, chosen.gain_db
    return (_folded(run, normal, found.scales, observed) if found.scales else normal), found


def _folded(
    run: Run, normal: models.Model, scales: Mapping[str, NDArray[np.float32]], observed: Observations
) -> models.Model:
    return run.rewritten(SmoothQuant(scales, split=True), normal, observed.kept)
