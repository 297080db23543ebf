"""Accuracy gates and weights in few bits: layers that go back to high precision, and advice where none is left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qcompiler.errors import AccuracyError
from qcompiler.numerics.blocks import SIZES
from qcompiler.weight_only.stored import Stored, StoredWeight

if TYPE_CHECKING:
    from qcompiler.verification.compare import Verification
    from qcompiler.verification.gates import Gates


RAISED = 0.05  # share of the stored weights that goes back to high precision where a gate was missed
SMALLEST_BLOCK = min(SIZES)


def give_back(stored: Stored | None, min_share: float) -> Stored | None:
    """The layers that err most in high precision, for a gate that was missed; None where there is nothing more to try.

    A twentieth of the weights at a time.

    Args:
        stored: what is stored by now.
        min_share: share of the weights that stays stored whatever is missed, 0..1.
    """
    if stored is None or not stored.weights:
        return None
    sizes = {name: one.blocks.values.size for name, one in (*stored.weights.items(), *stored.restored.items())}
    total = sum(sizes.values())
    left = sum(sizes[name] for name in stored.weights) - min_share * total
    worst = sorted(stored.weights.values(), key=_first)
    chosen: list[str] = []
    for one in worst:
        size = sizes[one.layer.node]
        if size <= left and sum(sizes[name] for name in chosen) < RAISED * total:
            chosen.append(one.layer.node)
            left -= size
    if not chosen:
        return None
    back = {name: stored.weights[name] for name in chosen}
    weights = {name: one for name, one in stored.weights.items() if name not in back}
    return replace(stored, weights=weights, restored={**stored.restored, **back})


def _first(one: StoredWeight) -> tuple[bool, float]:
    """What errs most comes first. What a weight errs by itself is no measure of outputs: without any, it comes last."""
    return one.output_db is None, one.known_db


def require(verification: Verification, gates: Gates, stored: Stored | None, advice: str) -> None:
    """`Gates.require`, with what can be done about weights in few bits.

    Args:
        verification: the comparison.
        gates: the user's limits.
        stored: the weights in few bits; None where there are none.
        advice: what can be done about anything else.

    Raises:
        AccuracyError: a gate is missed.
        UsageError: a threshold was given for something that was not measured.
    """
    try:
        gates.require(verification, advice)
    except AccuracyError as error:
        if stored is None or not (stored.weights or stored.restored):
            raise
        raise AccuracyError(f"{error} {_advice(stored)}") from error


def _advice(stored: Stored) -> str:
    worst = min(stored.weights.values(), key=_first, default=None)
    options, tips = stored.options, []
    if options.precision == "int4-weight" and options.table.block_size > SMALLEST_BLOCK:
        tips.append(f"--weight-only-block-size {SMALLEST_BLOCK}")
    if "gptq" not in stored.method and stored.method != "auto":
        tips.append("--weight-only-method gptq with --data")
    if options.precision == "int4-weight":
        tips.append("--precision int8-weight")
    if worst is not None:
        tips.append(f"--keep '{worst.layer.node}' (its outputs reach only {worst.known_db:.1f} dB)")
    back = f"{len(stored.restored)} layers went back to high precision already; " if stored.restored else ""
    return f"For weights in few bits: {back}try {', '.join(tips)}." if tips else ""
