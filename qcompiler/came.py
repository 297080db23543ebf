"""Weights that came quantized, while formats are chosen: opened to the float values they stand for, with their scales.

DQ(w₈, s) ⇒ W = w₈ · s. Whatever is then tried on the layer (formats, ranges, corrections) is tried on a float weight
like any other. Stored again with the same scales it gives the same integers, because W / s is w₈ to the last bit but
one. A layer that ends with a float activation keeps its weight stored as INT8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import graph as graphs
from qcompiler.decide import Candidate
from qcompiler.plan import Plan
from qcompiler.quantized import dequantized, is_dq

if TYPE_CHECKING:
    from numpy.typing import NDArray


def opened(graph: gs.Graph, found: Sequence[Candidate]) -> None:
    """Makes candidates read floats: constants instead of stored weights, and what a pair of their own reads.

    A constant bears the name of what the DequantizeLinear wrote, which is the candidate's weight.
    """
    _open_pairs(graph, {candidate.node: candidate for candidate in found if candidate.amax is not None})
    wanted = {candidate.weight for candidate in found if candidate.scales is not None}
    gone: list[gs.Node] = []
    for node in graph.nodes:
        if not is_dq(node) or node.outputs[0].name not in wanted:
            continue
        out = node.outputs[0]
        values = dequantized(node, graphs.dtype_of(out) or np.dtype(np.float32))
        users = graphs.consumers(out)
        constant = graphs.add_constant(out.name, values)
        for user, index in users:
            graphs.set_input(user, index, constant)
        gone.append(node)
    graphs.remove_nodes(graph, gone)


def _open_pairs(graph: gs.Graph, found: Mapping[str, Candidate]) -> None:
    """Float weight, quantized activation: the pair is put back with the same scale when the weight is stored."""
    for node in list(graph.nodes):
        back = graphs.producer(node.inputs[0]) if node.name in found else None
        if back is None or not is_dq(back):
            continue
        before = graphs.producer(back.inputs[0])
        if before is None:
            continue
        graphs.set_input(node, 0, before.inputs[0])
        for one in (back, before):
            if not one.outputs[0].outputs and not graphs.is_output(graph, one.outputs[0]):
                graphs.remove_node(graph, one)


def close(plan: Plan, found: Sequence[Candidate], released: Mapping[str, str]) -> None:
    """Completes a plan for what came quantized.

    Layers that stay float keep their weights stored as they came, and decisions tell what became of their pairs.

    Args:
        plan: as chosen; edited.
        found: the candidates.
        released: why a pair was dropped, by the name of the float tensor (see `passes.release_quantizers`).
    """
    for one in found:
        decision = plan.decisions.get(one.node)
        if decision is None:
            continue
        notes = []
        if one.scales is not None:
            notes.append("its weight keeps the integers and scales it came with")
            if not decision.precision.quantized:
                plan.axes[one.node] = one.axis
        if one.activation in released:
            notes.append(f"the pair its activation came with was dropped because {released[one.activation]}")
        elif one.amax is not None and decision.precision.quantized:
            notes.append("its activation has the scale of the pair that it came with")
        if notes:
            plan.add(dataclasses.replace(decision, why="; ".join((decision.why, *notes))))


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
