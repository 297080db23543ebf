"""What the rules of a target say of every layer of a model, for those who only look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.data.batches import BatchAxes, samples_of
from qcompiler.data.samples import ShapeRange
from qcompiler.data.source import Source
from qcompiler.errors import ModelError
from qcompiler.ir.macs import node_macs, tensors_for_shapes
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement import candidates, few_rows, routers
from qcompiler.planning.placement.profile import USUAL, shapes_at, shapes_of_many
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import shapes
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.runtime.work import count_macs
from qcompiler.statistics.observe import Observations

_YES = "linear"  # the rule of what can be quantized


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """A node that multiplies, as the compiler sees it after clean-up.

    Attributes:
        node: its name.
        op: ONNX operator.
        quantizable: whether the rules of the target let it be INT8; whether accuracy does is only known after
            `compile`.
        rule: the id of the rule that decided.
        why: one sentence; empty where it can be quantized.
        macs: multiply-accumulates of one sample; None where shapes are not known.
        share: of the model's multiply-accumulates, 0..1; None where those of some layer are not known.
    """

    node: str
    op: str
    quantizable: bool
    rule: str
    why: str
    macs: int | None = None
    share: float | None = None


def known_shapes(
    graph: gs.Graph, source: Source | None, axes: BatchAxes, recipe: Recipe, problems: list[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes for one sample, and the multiply-accumulates of the nodes that can be counted, by name.

    The sample is the first feed; without data it has the recipe's usual shapes or a batch of one.
    """
    if source is not None:
        try:
            first = next(samples_of(next(iter(source)), axes))
            known = concrete_shapes(graph, first, tensors_for_shapes(graph))
            return known, count_macs(graph, first, known)
        except ModelError as error:
            problems.append(f"multiply-accumulates are not known: {error}")
            return {}, {}
    usual = {name: sizes[1] for name, sizes in (recipe.shapes or {}).items()}
    known = shapes.assumed_shapes(graph, usual)
    return known, node_macs(graph, known)


def served_shapes(
    graph: gs.Graph,
    source: Source | None,
    seen: ShapeRange,
    axes: BatchAxes,
    recipe: Recipe,
    known: Mapping[str, tuple[int, ...]],
) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]:
    """Shapes by which products are too small or not, `known` ones without data.

    Returns:
        Those at the usual size of the inputs, and with several samples where the batch is free.
    """
    if source is None or not known or not seen.seen:
        return known, known
    observed = Observations(kept=(next(iter(source)),), shapes=seen, axes=axes)
    usual = shapes_at(graph, observed, recipe.shapes, USUAL, list(known))
    return usual, shapes_of_many(graph, observed, recipe.shapes, list(known))


def judged(
    graph: gs.Graph,
    found: Iterable[Candidate],
    refused: Iterable[Refusal],
    served: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
    macs: Mapping[str, int],
    total: int,
    recipe: Recipe,
) -> tuple[InspectedLayer, ...]:
    """Every node that multiplies in graph order, nested ones behind."""
    nodes, target = {node.name: node for node in graph.nodes}, recipe.resolve()
    found, (usual, many) = list(found), served
    too_small = {one.node: one for one in candidates.small(graph, found, many, target)}
    left = [one for one in found if one.node not in too_small]
    few = few_rows.refusals(graph, left, usual, macs, target, recipe.safety.min_share)
    too_small |= {one.node: one for one in few}
    left = [one for one in left if one.node not in too_small]
    too_small |= {one.node: one for one in routers.refusals(graph, left, macs, recipe.safety.min_share)}
    verdicts = {one.node: InspectedLayer(one.node, one.op, False, one.rule, one.why) for one in refused}
    for one in found:
        small = too_small.get(one.node)
        rule, why = (_YES, "") if small is None else (small.rule, small.why)
        verdicts[one.node] = InspectedLayer(one.node, one.op, small is None, rule, why)
    places = {name: i for i, name in enumerate(nodes)}
    return tuple(
        replace(one, macs=macs.get(one.node), share=macs.get(one.node, 0) / total if total else None)
        for one in sorted(verdicts.values(), key=lambda one: places.get(one.node, len(places)))
    )


def by_rule(layers: Iterable[InspectedLayer]) -> Iterator[dict[str, Any]]:
    """What stays float, one record per rule, the most multiply-accumulates first."""
    groups: dict[str, list[InspectedLayer]] = {}
    for layer in layers:
        if not layer.quantizable:
            groups.setdefault(layer.rule, []).append(layer)
    for rule, group in sorted(groups.items(), key=lambda item: -sum(one.macs or 0 for one in item[1])):
        first = group[0].node if len(group) == 1 else f"{group[0].node} and {len(group) - 1} more"
        shares = [one.share for one in group if one.share is not None]
        yield _present({"rule": rule, "nodes": first, "share": sum(shares) if shares else None, "why": group[0].why})


def record(layer: InspectedLayer) -> dict[str, Any]:
    """A layer as a record; what is not known is left out."""
    verdict = "yes" if layer.quantizable else layer.rule
    figures = {"macs": layer.macs, "share": layer.share}
    return {
        "node": layer.node,
        "op": layer.op,
        "int8": verdict,
        **_present(figures),
        **({"why": layer.why} if layer.why else {}),
    }


def _present(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}
