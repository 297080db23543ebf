"""What was asked for of the share of the work that is quantized: all in vain, too little, or as promised."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qcompiler.errors import AccuracyError
from qcompiler.ir.operators import MULTIPLYING, QUANTIZED_OPS, RECURRENT
from qcompiler.plan import Decision, Plan

LAYERS = frozenset({*MULTIPLYING, *RECURRENT, *QUANTIZED_OPS})
KINDS = "convolution, matrix product or recurrent layer"
SHOWN = 3  # reasons that are told
# by the search, or by the user, or, as all engines do it, because scores and values of an attention are fused in half
_EXPECTED = frozenset({"sensitive", "kept", "qfem", "attention", "slower"})
_OF_DATA = frozenset({"unseen", "zero", "constant", "few-elements"})  # a warning of their own says what data lacks


@dataclass(frozen=True, slots=True)
class Promise:
    """What the user asks of the share.

    Attributes:
        precision: what layers were to compute or be stored in, as the user wrote it.
        asks: that is a quantized type.
        something: it is so for certain: not where float was among what was asked for, as with `auto`.
        min_share: so much of all multiply-accumulates must be quantized, 0..1; None: no gate.
        usual: so much of them is quantized where nothing stands against it, 0..1: less is told.
    """

    precision: str
    asks: bool
    something: bool
    min_share: float | None = None
    usual: float = 0.0


def left_float(plan: Plan, promise: Promise) -> str | None:
    """What stays in float because of what it is, where that is more than may go back for accuracy; None where not.

    What accuracy or the user has given back, or the data has not shown, is told elsewhere, and attention stays in half
    unless it is asked for.

    Args:
        plan: what was reached.
        promise: what was asked for.
    """
    total = sum(one.macs for one in plan)
    left = [one for one in plan if one.macs and not one.precision.quantized and one.rule not in _EXPECTED | _OF_DATA]
    share = sum(one.macs for one in left) / total if total else 0.0
    if not promise.something or share <= 1 - promise.usual or not plan.quantized():
        return None
    return f"{share:.0%} of the work stays in float whatever its accuracy: {_reasons(left, of=len(_layers(plan)))}"


def nothing_quantized(plan: Plan, promise: Promise) -> str | None:
    """Why the result is of no use to whoever asked for `promise.precision`, as one sentence without an advice.

    Args:
        plan: what was reached, of activations or of weights alone.
        promise: what was asked for.

    Returns:
        None where a layer is quantized, or nobody asked for it.
    """
    if not promise.asks:
        return None
    layers = _layers(plan)
    if any(one.precision.quantized for one in layers):
        return None
    head = f"nothing of what was asked for was quantized ({promise.precision})"
    if not layers:
        return f"{head}: the model has no {KINDS}"
    return f"{head}: {_reasons(layers)}"


def require(plan: Plan, promise: Promise, confirmed: Collection[str] | None = None) -> None:
    """Applies the gate on the share.

    Args:
        plan: what was reached.
        promise: what was asked for.
        confirmed: names of the nodes that the engine's own listing confirms; None where nothing was built or listed.

    Raises:
        AccuracyError: less is quantized, or confirmed, than was asked for.
    """
    if promise.min_share is None:
        return
    kept = [one for one in plan.quantized() if confirmed is None or one.node in confirmed]
    share = plan.share(confirmed)
    if share >= promise.min_share - 1e-9:
        return
    what = "quantized" if confirmed is None else "quantized and confirmed by the engine's own listing"
    lost = {one.node for one in kept}
    others = [one for one in plan if one.macs and one.node not in lost]
    rest = f" Of the rest, {_reasons(others)}." if others and confirmed is None else ""
    raise AccuracyError(
        f"{share:.1%} of the multiply-accumulates are {what} and at least {promise.min_share:.1%} were asked for."
        f"{rest} {_advice(others)}"
    )


def _advice(others: Collection[Decision]) -> str:
    """What gives more layers a quantized type, by why they have none."""
    rules = {one.rule for one in others}
    tips = ["ask for less with --min-share"]
    if "sensitive" in rules:
        tips.append("ask for less accuracy (--min-sqnr, --max-drop, or safety.target_sqnr_db in the recipe)")
    if "kept" in rules:
        tips.append("keep fewer layers with --keep")
    text = ", or ".join(tips)
    return f"{text[0].upper()}{text[1:]}; the report has the reason for every layer."


def _layers(plan: Plan) -> list[Decision]:
    return [one for one in plan if one.macs or one.op in LAYERS]


def _reasons(layers: Collection[Decision], of: int | None = None) -> str:
    """`rule 'gemv' leaves 5 of 6 layers in float (such as 'fc', Gemm: ...), 'kept' 1`, the most work first.

    Args:
        layers: that stay in float.
        of: how many there are in all; None for no others.
    """
    groups: dict[str, list[Decision]] = {}
    for one in layers:
        groups.setdefault(one.rule, []).append(one)
    order = sorted(groups, key=lambda rule: (-sum(one.macs for one in groups[rule]), -len(groups[rule]), rule))
    first = max(groups[order[0]], key=lambda one: one.macs)
    such = "such as " if len(groups[order[0]]) > 1 else ""
    count = len(layers) if of is None else of
    head = f"rule '{order[0]}' leaves {len(groups[order[0]])} of {count} layers in float"
    parts = [f"{head} ({such}'{first.node}', {first.op}: {first.why})"]
    parts += [f"'{rule}' {len(groups[rule])}" for rule in order[1:SHOWN]]
    more = len(order) - SHOWN
    return ", ".join(parts) + (f", and {more} more rules the rest" if more > 0 else "")
