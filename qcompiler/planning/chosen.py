"""What planning is asked, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.plan import FittedWeight, Plan
from qcompiler.planning.search.goal import GoalReached
from qcompiler.planning.search.qfem import NOTHING, Scores, Spared
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.search.take import Pinned
from qcompiler.recipe.tables import QfemTable, SafetyTable
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Planning:
    """What planning may see of what the user asked for.

    Attributes:
        formats: the quantized types that layers may get.
        everything: no layer may go back to high precision for accuracy.
        dynamic: activations get a scale per row at run time: nothing is chosen.
        by_cost: formats are compared by what they cost on the target; else high precision is what costs.
        calibrator: text form of the one that chooses ranges, or `auto` for the choice among several.
        safety: the table of the safety net.
        qfem: the table of QFeM.
        min_sqnr: SQNR in dB that every output must reach; None for no gate.
        min_share: share of all multiply-accumulates that must be quantized whatever the outputs say, 0..1; 0 for no
            gate.
        objective: what is least among the plans that meet the goal: `share` of work in high precision, `time` that is
            predicted, or `size` of the weights.
        pick: which plan of the front instead: `fastest`, `most-accurate`, `knee`, an id (int) or a share (float); None
            for the cheapest that meets the goal.
        effort: `quick`, `balanced` or `thorough`.
        search_time: seconds that may be searched, in place of the effort; None for what the effort says (see
            `recipe.budget`).
        max_drop: what the metric may lose, relative; None where no gate is on it.
        at: which point of an earlier try's front is taken now, without a search; None to search.
        beyond: the cheapest plan missed where it was judged: what comes behind it is looked for.
        replay: the point of an earlier compilation's front that is made, without a search; None to search.
        reproducible: the search counts runs, as many as that time pays for at the nominal speed; else the clock counts.
        per_channel: INT8 weights have a scale per output channel.
        clip_weights: weight ranges may be narrower than the largest weight.
        attention: INT8 or FP8 for the products of attentions; None where they stay float.
        shapes: smallest, usual and largest shape by input; None for those of the data.
        ignored: outputs that are not judged.
        likelihood: what the next token is drawn by is compared by the likelihood that it loses; False where the user
            asks for a number of dB, which is one of powers.
    """

    formats: tuple[DType, ...]
    everything: bool
    dynamic: bool
    by_cost: bool
    calibrator: str
    safety: SafetyTable
    qfem: QfemTable
    min_sqnr: float | None
    per_channel: bool
    clip_weights: bool
    attention: DType | None
    shapes: Mapping[str, Sequence[tuple[int, ...]]] | None
    ignored: tuple[str, ...] = ()
    min_share: float = 0.0
    objective: str = "share"
    pick: str | float | None = None
    effort: str = "balanced"
    search_time: float | None = None
    reproducible: bool = True
    max_drop: float | None = None
    at: int | None = None
    beyond: bool = False
    replay: Pinned | None = None
    likelihood: bool = False


@dataclass(frozen=True)
class Chosen:
    """The plan and how it was found.

    Attributes:
        plan: every linear node's precision.
        net: what the safety net did.
        corrections: by node name, what bias correction adds to its output channels.
        scales: by node name, scales of its INT8 weight where they are not amax / 127.
        fitted: by node name, its INT8 weight where that is not the nearest integers.
        spared: what QFeM decided.
        scores: the user's metric by what was spared, for the next try on the same model.
        goal: what was asked of it, and whether that is reached on the samples that choose; None where nothing was.
    """

    plan: Plan
    net: SafetyNet
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    fitted: Mapping[str, FittedWeight] = field(default_factory=dict)
    spared: Spared = NOTHING
    scores: Scores = field(default_factory=dict)
    goal: GoalReached | None = None
