"""Which smoothing the outputs of the model like best: the alphas that were chosen layer by layer, one for all, or none.

What is best for every layer by itself need not be best together, where a model errs so little anyway that chance
decides. So the chosen alphas are held against no smoothing, with all layers quantized, and where they do not win by
far, against one alpha for all layers as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import calibrators, decide, safety
from qcompiler import model as models
from qcompiler.bias import Shifts
from qcompiler.decide import Candidate
from qcompiler.signature import Feeds
from qcompiler.simulate import Simulator, Use
from qcompiler.smoothing import Group
from qcompiler.sqnr import decibel
from qcompiler.target import DType

if TYPE_CHECKING:
    from qcompiler.statistics import Histogram

FIXED = (0.3, 0.5, 0.7, 0.85)
CLEAR_DB = 3.0  # what the chosen alphas must gain for no others to be tried
RANGES = ("mse", "percentile{p=99.99}", "minmax")
RANGES_FP8 = ("mse{format=fp8}", "minmax")


@dataclass(frozen=True, eq=False)
class Attempt:
    """A way of smoothing that was tried.

    Attributes:
        label: `auto`, `off` or an alpha.
        groups: what was decided for each group of layers.
        sqnr_db: of the outputs with all layers quantized, on samples that scales and ranges have not seen.
    """

    label: str
    groups: tuple[Group, ...]
    sqnr_db: float


def best(attempt: Callable[[str | float], Attempt]) -> tuple[Attempt, list[Attempt]]:
    """The attempt with the highest SQNR, and all that were made.

    Args:
        attempt: smooths with `auto`, `off` or an alpha, and measures.
    """
    tried = [attempt("auto"), attempt("off")]
    smoothed = any(group.alpha is not None for group in tried[0].groups)
    if smoothed and tried[0].sqnr_db < tried[1].sqnr_db + CLEAR_DB:
        tried += [attempt(alpha) for alpha in FIXED]
    return max(tried, key=lambda one: one.sqnr_db), tried


def measure(
    model: models.Model,
    found: Sequence[Candidate],
    histograms: Mapping[str, Histogram],
    feeds: Sequence[Feeds],
    *,
    dtype: DType,
    calibrator: str,
    per_channel: bool,
) -> float:
    """SQNR in dB of the outputs with all candidates quantized, in the best of the ranges that one calibrator gives.

    Args:
        model: the float model, normalised and smoothed or not.
        found: its candidates.
        histograms: of their activations.
        feeds: samples to measure on.
        dtype: INT8 or FP8.
        calibrator: the recipe's; `auto` tries several.
        per_channel: weight scales per output channel, else per tensor.
    """
    groups = decide.by_activation(found)
    texts = (calibrator,) if calibrator != "auto" else RANGES_FP8 if dtype is DType.FP8 else RANGES
    methods = [calibrators.parse(text) for text in texts]
    ranges = {name: [method.range(histograms[name]) for method in methods] for name in groups}
    shifts = Shifts(model, groups, ranges, feeds, per_channel=per_channel)
    simulator = Simulator(model, groups, shifts, per_channel=per_channel, dtypes=(dtype,))
    probe = safety.Measure(simulator, feeds, len(feeds), None)
    return max(
        decibel(probe.noise({name: Use(dtype, offered[i]) for name, offered in ranges.items()}))
        for i in range(len(methods))
    )
