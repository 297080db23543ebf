"""QFeM: which layers stay in high precision because single tokens of their input spike.

A layer's ratio is the mean over samples of (largest token / median token), a token being measured by its largest |x|
(Yang et al. 2024, "Mitigating Quantization Errors Due to Activation Spikes in GLU-Based LLMs", §4.1). Layers with a
ratio above alpha are not quantized; layers that read one activation decide together. The paper leaves open how alpha is
found. Here the observed ratios are walked from the largest down, the error of the model's outputs is measured at each
step against the share of multiply-accumulates that stays high, and the walk goes on as long as it pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

RULE = "qfem"
LEAST = 4.0  # a ratio that layers without any spike reach too
SLOPE_DB = 0.5  # what each percent of the multiply-accumulates that stays high must gain
MOST_STEPS = 10

Measure = Callable[[Sequence[str]], float]


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold that was tried.

    Attributes:
        alpha: layers with a larger ratio stay high.
        share: their share of the linear multiply-accumulates, 0..1.
        sqnr_db: of the outputs, everything else being quantized; None where it was not measured.
        layers: how many activations that are.
    """

    alpha: float
    share: float
    sqnr_db: float | None
    layers: int


@dataclass(frozen=True)
class Spared:
    """What QFeM decided.

    Attributes:
        alpha: the threshold; None where no layer stays high.
        why: how it was found.
        ratios: of each activation.
        tensors: activations whose readers stay high, the largest ratio first.
        curve: thresholds tried, from sparing nothing on.
    """

    alpha: float | None
    why: str
    ratios: Mapping[str, float]
    tensors: tuple[str, ...] = ()
    curve: tuple[Point, ...] = ()

    def reason(self, tensor: str) -> str:
        """Why the readers of one of `tensors` stay high."""
        return f"its largest token is {self.ratios[tensor]:.4g} times its median one, above alpha {self.alpha:.4g}"


def fixed(ratios: Mapping[str, float], macs: Mapping[str, int], total: int, alpha: float) -> Spared:
    """Every activation with a ratio above a threshold that the user gave."""
    chosen = [name for name in _ordered(ratios) if ratios[name] > alpha]
    point = Point(alpha, _share(chosen, macs, total), None, len(chosen))
    return Spared(alpha, "given by the user", dict(ratios), tuple(chosen), (point,))


def search(
    ratios: Mapping[str, float],
    macs: Mapping[str, int],
    total: int,
    measure: Measure,
    *,
    budget: float,
    target_db: float,
) -> Spared:
    """Walks the observed ratios and stops at the target, at the knee of the curve, or at the budget.

    Args:
        ratios: of each activation, 1 and more.
        macs: multiply-accumulates of its readers.
        total: those of the whole model.
        measure: SQNR in dB of the outputs with the readers of these activations high and all others quantized.
        budget: share of the multiply-accumulates that may stay high, 0..1.
        target_db: SQNR that is good enough.

    Returns:
        The smallest choice from which no larger one gains `SLOPE_DB` per percent.
    """
    order = [name for name in _ordered(ratios) if ratios[name] > LEAST]
    affordable = [n for n in range(len(order) + 1) if _share(order[:n], macs, total) <= budget + 1e-9]
    curve: list[Point] = []
    for count in _steps(affordable[-1]):
        curve.append(_point(order, count, ratios, macs, total, measure))
        if curve[-1].sqnr_db is not None and curve[-1].sqnr_db >= target_db:
            break
    best = _knee(curve)
    if not best.layers:
        why = f"sparing layers gains less than {SLOPE_DB:g} dB a percent"
        if len(curve) == 1:
            met = curve[0].sqnr_db is not None and curve[0].sqnr_db >= target_db
            why = "the outputs meet the target without it" if met else "no layer's tokens spike"
        return Spared(None, why, dict(ratios), (), tuple(curve))
    reached = best.sqnr_db is not None and best.sqnr_db >= target_db
    limit = best is curve[-1] and not reached
    why = "the target is reached" if reached else "the budget ends here" if limit else "more layers gain too little"
    return Spared(best.alpha, why, dict(ratios), tuple(order[: best.layers]), tuple(curve))


def _ordered(ratios: Mapping[str, float]) -> list[str]:
    return sorted(ratios, key=lambda name: (-ratios[name], name))


def _share(names: Sequence[str], macs: Mapping[str, int], total: int) -> float:
    return sum(macs[name] for name in names) / total if total else 0.0


def _steps(most: int) -> list[int]:
    """How many layers to spare: 0, 1, 2, 3, then in growing steps up to the most."""
    steps, at = [0], 1
    while at < most and len(steps) < MOST_STEPS:
        steps.append(at)
        at += max(1, at // 3)
    return [*steps, most] if most else steps


def _point(
    order: Sequence[str], count: int, ratios: Mapping[str, float], macs: Mapping[str, int], total: int, measure: Measure
) -> Point:
    """A threshold halfway between the last ratio that is spared and the first that is not, by their product."""
    above = ratios[order[count - 1]] if count else None
    below = ratios[order[count]] if count < len(order) else LEAST
    alpha = (above * below) ** 0.5 if above is not None else max(ratios.values(), default=1.0)
    chosen = order[:count]
    return Point(alpha, _share(chosen, macs, total), measure(chosen), count)


def _knee(curve: Sequence[Point]) -> Point:
    best = curve[0]
    for point in curve[1:]:
        gained = (point.sqnr_db or 0.0) - (best.sqnr_db or 0.0)
        if gained > 0 and gained >= SLOPE_DB * 100 * (point.share - best.share):
            best = point
    return best
