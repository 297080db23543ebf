"""Accuracy gates and weights in few bits: layers that go back to high precision, and advice where none is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompiler.blocks import SIZES
from qcompiler.errors import AccuracyError
from qcompiler.recipe import Recipe
from qcompiler.stored_weights import Stored
from qcompiler.verification import gate as check_gate

if TYPE_CHECKING:
    from qcompiler.stages import Run
    from qcompiler.verification import Verification

RAISED = 0.05  # share of the stored weights that goes back to high precision where a gate was missed
SMALLEST_BLOCK = min(SIZES)


def missed(verification: Verification | None, recipe: Recipe) -> bool:
    """Whether a gate of the recipe is missed."""
    if verification is None:
        return False
    try:
        check_gate(verification, recipe)
    except AccuracyError:
        return True
    return False


def give_back(run: Run, stored: Stored | None, verification: Verification | None) -> bool:
    """Gives the layers that err most back to high precision where a gate was missed; whether there is more to try.

    A twentieth of the weights at a time, as long as `safety.min_share` of them stays stored.
    """
    if stored is None or not stored.weights or not missed(verification, run.recipe):
        return False
    sizes = {name: one.blocks.values.size for name, one in (*stored.weights.items(), *stored.restored.items())}
    total = sum(sizes.values())
    left = sum(sizes[name] for name in stored.weights) - run.recipe.safety.min_share * total
    worst = sorted(stored.weights.values(), key=lambda one: one.known_db)
    chosen: list[str] = []
    for one in worst:
        size = sizes[one.layer.node]
        if size <= left and sum(sizes[name] for name in chosen) < RAISED * total:
            chosen.append(one.layer.node)
            left -= size
    for name in chosen:
        stored.restored[name] = stored.weights.pop(name)
    return bool(chosen)


def gate(verification: Verification, recipe: Recipe, stored: Stored | None) -> None:
    """`verification.gate`, with what can be done about weights in few bits.

    Raises:
        AccuracyError: a gate is missed.
    """
    try:
        check_gate(verification, recipe)
    except AccuracyError as error:
        if stored is None or not (stored.weights or stored.restored):
            raise
        raise AccuracyError(f"{error} {_advice(stored, recipe)}") from error


def _advice(stored: Stored, recipe: Recipe) -> str:
    worst = min(stored.weights.values(), key=lambda one: one.known_db, default=None)
    tips = []
    if recipe.precision == "int4-weight" and recipe.weight_only.block_size > SMALLEST_BLOCK:
        tips.append(f"--block-size {SMALLEST_BLOCK}")
    if "gptq" not in stored.method:
        tips.append("--weight-method gptq with --data")
    if recipe.precision == "int4-weight":
        tips.append("--precision int8-weight")
    if worst is not None:
        tips.append(f"--keep '{worst.layer.node}' (its outputs reach only {worst.known_db:.1f} dB)")
    back = f"{len(stored.restored)} layers went back to high precision already; " if stored.restored else ""
    return f"For weights in few bits: {back}try {', '.join(tips)}." if tips else ""
