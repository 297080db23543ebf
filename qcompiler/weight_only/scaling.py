"""AWQ's scaling of a whole model: which activations it divides and by what, folded into what computes them.

The search is `qcompiler.weight_only.awq`. The fold is the float rewrite of SmoothQuant and stands behind the
equivalence check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.passes.absorb import absorb
from qcompiler.passes.base import Report
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.verification.equivalence import UNDONE, applied
from qcompiler.weight_only import awq, storable
from qcompiler.weight_only.row_trials import RowTrials
from qcompiler.weight_only.storable import StorableLayer

if TYPE_CHECKING:
    from numpy.typing import NDArray


WORTH_DB = 0.05  # a smaller gain is not worth an edit
WORTH_DB_ELSE = 1.0  # with GPTQ alone, which finds such gains by itself, and in INT8, which errs little anyway


@dataclass(frozen=True, eq=False)
class Scaling:
    """What was divided, by name of the activation.

    Attributes:
        model: with the scaling folded in; as given where nothing gains by it.
        scales: what each is divided by, [K].
        gains: what that gains over rounding to nearest on rows that nothing was fitted to, in dB.
        left: why the others were not.
        reports: of the passes that ran.
        errors: largest relative error of each behind the equivalence check, by its text form.
    """

    model: models.Model
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)


def scale(
    normal: models.Model,
    layers: Sequence[StorableLayer],
    seen: Mapping[str, RowTrials],
    feeds: Sequence[Feeds],
    *,
    method: str,
    half: bool,
) -> Scaling:
    """Looks for the scaling of every activation and folds it into the model, behind the equivalence check.

    Args:
        normal: normalised float model.
        layers: whose weights are stored.
        seen: rows of what they read.
        feeds: samples that the check runs.
        method: `awq`, `awq+gptq` or `auto`: from which gain on scaling is worth it.
        half: scales are numbers that FP16 holds exactly.

    Returns:
        The scaled model; as given where the scaling missed the check and was undone, which the report says.
    """
    scales: dict[str, NDArray[np.float32]] = {}
    gains: dict[str, float] = {}
    left: dict[str, str] = {}
    tensors, nodes = normal.graph.tensors(), {node.name: node for node in normal.graph.nodes}
    for name, members in storable.by_activation(layers).items():
        few = [one for one in members if one.format == "int4"] or members  # INT8 siblings err next to nothing
        fold = absorb.find_moves(normal.graph, tensors[name], -1, split=True)
        if fold.why:
            left[name] = f"no producer can absorb it: {fold.why}"
            continue
        chosen = awq.find_scales(
            seen[name],
            [storable.matrix(nodes[one.node]) for one in few],
            size=few[0].size,
            format=few[0].format,
            classes=fold.classes,
            half=half,
        )
        worth = WORTH_DB if method in ("awq", "auto") and few[0].format == "int4" else WORTH_DB_ELSE
        if chosen.gain_db < worth:
            left[name] = f"no scaling gains {worth:g} dB"
            continue
        scales[name], gains[name] = chosen.scales, chosen.gain_db
    if not scales:
        return Scaling(normal, left=left)
    model, report, error = applied(SmoothQuant(scales, split=True), normal, feeds)
    if report.undone:
        return Scaling(normal, left={**left, **dict.fromkeys(scales, UNDONE)}, reports=(report,))
    return Scaling(model, scales, gains, left, (report,), {} if error is None else {report.name: error})
