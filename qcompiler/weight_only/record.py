"""What the plan and the manifest say about weights in few bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qcompiler.plan import Decision, Plan
from qcompiler.planning.placement import candidates
from qcompiler.target import DType, Target
from qcompiler.weight_only.storable import StorableLayer
from qcompiler.weight_only.stored import Stored, StoredWeight


def into(plan: Plan, stored: Stored | None, target: Target, order: Sequence[str]) -> Plan:
    """The plan with the decisions, in graph order.

    Args:
        plan: what else was decided; decisions about other nodes stay.
        stored: the stage's result; None for nothing to do.
        target: its high-precision type.
        order: names of the graph's nodes.
    """
    if stored is None:
        return plan
    high = target.high_precision
    decisions: dict[str, Decision] = {}
    for refusal in stored.refused:
        if refusal.node not in plan.decisions:
            own = DType.FP32 if refusal.rule == "subgraph" else high
            decisions.setdefault(refusal.node, candidates.decision(refusal, own, stored.macs.get(refusal.node, 0)))
    for name, one in stored.weights.items():
        macs = stored.macs.get(name, 0)
        decisions[name] = Decision(
            name, one.layer.op, one.layer.dtype, "weight-only", _why(one, high), macs, one.figures()
        )
    for name, one in stored.restored.items():
        why = f"an accuracy gate was missed, and this is one of the layers that err most: {one.errs()}"
        macs = stored.macs.get(name, 0)
        decisions[name] = Decision(name, one.layer.op, high, "sensitive", why, macs, one.figures())
    return plan.deciding(*decisions.values()).ordered(order)


def _why(one: StoredWeight, high: DType) -> str:
    layer = one.layer
    form = f"{layer.format.upper()} in blocks of {layer.size}" if layer.size else f"{layer.format.upper()} per output"
    special = f" ({layer.why})" if layer.why else ""
    tied = f"; its numbers are the table of '{layer.tied}', too" if layer.tied else ""
    return f"weight stored as {form}{special} by {one.method}, activation and product in {high}: {one.errs()}{tied}"


def record_of(stored: Stored | None) -> dict[str, Any] | None:
    """What the manifest says; None where weights were not asked for."""
    if stored is None:
        return None
    options, wanted = stored.options, stored.options.table
    weights = stored.weights.values()
    wide = 2 if options.half else 4
    gptq = any(one.method.endswith("gptq") for one in weights)
    return {
        "precision": options.precision,
        "method": stored.method,
        "methods": dict(Counter(one.method for one in weights)),
        "judged": sorted({one.judged for one in weights if one.judged}),
        "block_size": wanted.block_size if options.precision == "int4-weight" else None,
        "act_order": wanted.act_order if gptq else None,
        "damp": wanted.damp if gptq else None,
        "storage": wanted.storage,
        "layers": [_layer(one) for one in weights],
        "restored": list(stored.restored),
        "scaled": {name: round(gain, 3) for name, gain in stored.scaled.items()},
        "unscaled": stored.unscaled,
        "refused": dict(Counter(one.rule for one in stored.refused)),
        "forms": dict(Counter(_form(one.layer) for one in weights)),
        "tables": list(stored.tables),
        "tied": [one.layer.node for one in weights if one.layer.tied],
        "bytes_before": sum(wide * one.blocks.values.size for one in weights),
        "bytes_after": sum(one.bytes for one in weights),
        "gain_db": _mean([one.gain_db for one in weights if one.gain_db is not None and math.isfinite(one.gain_db)]),
    }


def _form(layer: StorableLayer) -> str:
    return f"{layer.format} in blocks of {layer.size}" if layer.size else f"{layer.format} per output"


def _layer(one: StoredWeight) -> dict[str, Any]:
    return {
        "node": one.layer.node,
        "depth": one.layer.depth,
        "width": one.layer.width,
        "format": one.layer.format,
        "block": one.layer.size,
        "method": one.method,
        "bytes": one.bytes,
        **{key: one.figures().get(key) for key in ("weight_db", "output_db", "gain_db")},
        "judged": one.judged or None,
        "rows": one.rows or None,
        "shrink": None if one.shrink is None else round(one.shrink, 4),
        "why": one.layer.why,
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
