"""What came quantized, while formats are chosen: scales and ranges that stay, and what the plan and the user are told.

Weights are opened to floats meanwhile (`passes.open_stored`). A layer that ends with a float activation keeps its
weight stored as INT8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qcompiler.decide import Candidate
from qcompiler.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def close(plan: Plan, found: Sequence[Candidate], released: Mapping[str, str]) -> Plan:
    """The plan completed for what came quantized.

    Layers that stay float keep their weights stored as they came, and decisions tell what became of their pairs.

    Args:
        plan: as chosen.
        found: the candidates.
        released: why a pair was dropped, by the name of the float tensor (see `passes.release_quantizers`).
    """
    told, axes = [], dict(plan.axes)
    for one in found:
        decision = plan.decisions.get(one.node)
        if decision is None:
            continue
        notes = []
        if one.scales is not None:
            notes.append("its weight keeps the integers and scales it came with")
            if not decision.precision.quantized:
                axes[one.node] = one.axis
        if one.activation in released:
            notes.append(f"the pair its activation came with was dropped because {released[one.activation]}")
        elif one.amax is not None and decision.precision.quantized:
            notes.append("its activation has the scale of the pair that it came with")
        if notes:
            told.append(dataclasses.replace(decision, why="; ".join((decision.why, *notes))))
    return plan.deciding(*told).with_(axes=axes)


def given(found: Sequence[Candidate], *, per_channel: bool) -> dict[str, NDArray[np.float32]]:
    """Scales of weights that came stored, by node name; without those per channel where a single one is asked for."""
    return {one.node: one.scales for one in found if one.scales is not None and (per_channel or one.scales.ndim == 0)}


def pin(
    ranges: dict[str, list[float]], spelled: dict[str, list[str]], groups: Mapping[str, Sequence[Candidate]]
) -> None:
    """Leaves the range of the pair that a tensor came with as the only one to choose from."""
    for name, members in groups.items():
        amax = next((one.amax for one in members if one.amax is not None), None)
        if amax is not None:
            ranges[name], spelled[name] = [amax], ["given"]


def warning(released: Mapping[str, str]) -> str:
    """What a user should know about pairs that were dropped."""
    name, why = next(iter(released.items()))
    return (
        f"this model came with quantizers that the target cannot have: '{name}' and others "
        f"lost theirs ({why}) and get ranges from your data; the plan and the notes of release-quantizers tell which"
    )


def smoothable(groups: Mapping[str, Sequence[Candidate]]) -> dict[str, Sequence[Candidate]]:
    """The groups in which nothing came quantized: scales that are kept would not fit what smoothing makes."""
    return {
        name: members
        for name, members in groups.items()
        if all(one.scales is None and one.amax is None for one in members)
    }
