"""Rounding of every layer's weight by one method, and what each then costs its outputs.

    rtn        nearest integers, whole range of each block
    mse        the range of each block that errs least over its weights
    awq        the range of each block that errs least in the outputs, or the whole one; scaling was folded before
    gptq       integers chosen channel by channel, each making up for the errors of those before it
    awq+gptq   the scaling of the one, the rounding of the other
    auto       of each layer, whichever of these errs least

What a layer errs is judged by its own outputs: Σ |x·(Ŵ - W)|² / Σ |x·W|², over rows that nothing was fitted to (see
`choice`). Without data there is nothing but the weights to judge by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from qcompiler.ir import model as models
from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import decibel, gain_db, sqnr_of
from qcompiler.statistics import hessian
from qcompiler.support.each import Each, in_turn
from qcompiler.support.memory import put_down
from qcompiler.weight_only import choice, storable
from qcompiler.weight_only.choice import Way
from qcompiler.weight_only.group import Group, Rounder
from qcompiler.weight_only.row_trials import Dealt, RowTrials
from qcompiler.weight_only.storable import StorableLayer
from qcompiler.weight_only.stored import StoredWeight

if TYPE_CHECKING:
    import numpy as np
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray


def methods(layers: Iterable[StorableLayer], method: str) -> dict[str, str]:
    """The method of each layer: beside INT4 blocks, INT8 errs so little that its own grid is all it needs."""
    known = list(layers)
    mixed = any(one.format == "int4" for one in known)
    return {one.node: "mse" if mixed and one.format == "int8" else method for one in known}


def watched(layers: Iterable[StorableLayer], method: str) -> dict[str, int]:
    """The activations that GPTQ needs a Hessian of, with their channels."""
    known = list(layers)
    chosen = methods(known, method)
    return {one.activation: one.depth for one in known if Way.GPTQ in offered(one, chosen[one.node])}


def offered(layer: StorableLayer, method: str, *, clipped: bool = True) -> tuple[Way, ...]:
    """What a method may do to a layer, the simplest first.

    Args:
        layer: the layer.
        method: its own, see `methods`.
        clipped: whether AWQ may clip its weight.
    """
    if method == "auto":
        fitted = (Way.CLIP,) if clipped else ()
        return (Way.NEAREST, Way.MSE, *fitted, *((Way.GPTQ,) if layer.format == "int4" else ()))
    if method == "awq":
        return (Way.NEAREST, Way.CLIP) if clipped else (Way.NEAREST,)
    return {"rtn": (Way.NEAREST,), "mse": (Way.MSE,)}.get(method, (Way.GPTQ,))


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding needs to know of all layers.

    Attributes:
        normal: the float model before AWQ's scaling.
        scaled: the one behind it; the same where nothing was scaled.
        layers: of `scaled`, with the names that activations have there.
        before: by node, the name of its activation in `normal`.
        seen: rows of the activations of `normal`, by name; empty without data.
        scales: what activations of `normal` were divided by.
        method: `rtn`, `mse`, `awq`, `gptq`, `awq+gptq` or `auto`.
        half: scales are numbers that FP16 holds exactly.
        damp: of GPTQ, see `gptq.factor`; None to choose by rows that nothing was fitted to how far Hessians are shrunk.
        act_order: likewise.
        scoring: layers that give queries and keys, whose weights AWQ does not clip.
    """

    normal: models.Model
    scaled: models.Model
    layers: Sequence[StorableLayer]
    before: Mapping[str, str]
    seen: Mapping[str, RowTrials]
    scales: Mapping[str, NDArray[np.float32]]
    method: str
    half: bool
    damp: float | None = None
    act_order: bool = True
    scoring: frozenset[str] = frozenset()

    @cached_property
    def _nodes(self) -> dict[str, gs.Node]:
        return {node.name: node for node in self.scaled.graph.nodes}

    @cached_property
    def _floats(self) -> dict[str, gs.Node]:
        return {node.name: node for node in self.normal.graph.nodes}

    @cached_property
    def _methods(self) -> dict[str, str]:
        return methods(self.layers, self.method)

    def round(
        self, dealt: Dealt | None, advance: Callable[[int], None] | None = None, each: Each = in_turn
    ) -> Iterator[StoredWeight]:
        """All layers, in an order that needs few Hessians at a time.

        Args:
            dealt: what GPTQ sums Hessians over; None without data, and then nothing is rounded by it.
            advance: called with the number of runs of the model since the last call.
            each: who rounds the groups of layers.
        """
        settings = choice.Settings(self.half, self.damp, self.act_order)
        begun: deque[tuple[Sequence[StorableLayer], Group]] = deque()

        def groups() -> Iterator[Group]:
            for members, moments in self._groups(dealt, advance):
                begun.append((members, self._group(members, moments)))
                yield begun[-1][1]

        for chosen in each("group", Rounder, (settings,), groups()):
            members, group = begun.popleft()
            for one in members:
                yield self._stored(one, chosen[one.node], group)

    def _groups(
        self, dealt: Dealt | None, advance: Callable[[int], None] | None
    ) -> Iterator[tuple[Sequence[StorableLayer], tuple[hessian.Moments, ...]]]:
        """Layers that read one activation, with the moments of that where they are needed."""
        groups = dict(storable.by_activation(self.layers))
        depths = {} if dealt is None else watched(self.layers, self.method)
        for name in [one for one in groups if one not in depths] if depths else ():
            yield groups.pop(name), ()
        if dealt is not None and depths:
            folds = dealt.folds
            for part in hessian.hessians(self.scaled, depths, dealt.fitting, folds=folds, advance=advance):
                for name, found in part.items():
                    yield groups.pop(name), found
        for members in groups.values():
            yield members, ()

    def _group(self, members: Sequence[StorableLayer], moments: tuple[hessian.Moments, ...]) -> Group:
        seen, scales = self._seen_by(members[0])
        behind = None if seen is None else seen.divided(scales)
        layers = {
            one.node: choice.Layer(storable.matrix(self._nodes[one.node]), one.size, one.format) for one in members
        }
        return Group(layers, {one.node: self._offered(one, behind, moments) for one in members}, moments, behind)

    def _seen_by(self, layer: StorableLayer) -> tuple[RowTrials | None, NDArray[np.float32] | None]:
        """Rows of its activation in front of AWQ's scaling, and the scales."""
        before = self.before[layer.node]
        return self.seen.get(before), self.scales.get(before)

    def _offered(
        self, layer: StorableLayer, seen: RowTrials | None, found: tuple[hessian.Moments, ...]
    ) -> tuple[Way, ...]:
        """What there is enough known for, at least one."""
        ways = offered(layer, self._methods[layer.node], clipped=layer.node not in self.scoring)
        if seen is None:
            ways = ways if ways in ((Way.NEAREST,), (Way.MSE,)) else (Way.MSE,)
        elif not found:
            ways = tuple(one for one in ways if one is not Way.GPTQ)
        return ways or (Way.MSE,)

    def _stored(self, layer: StorableLayer, chosen: choice.RoundedWeight, group: Group) -> StoredWeight:
        chosen = replace(chosen, blocks=replace(chosen.blocks, values=put_down(chosen.blocks.values)))
        seen, scales = self._seen_by(layer)
        weight, scaled = group.layers[layer.node].weight, scales is not None
        alone = sqnr_of(weight, blocks.dequantize(chosen.blocks) - weight)
        method = self._named(layer, chosen.way, scaled)
        rows = sum(one.rows for one in group.moments)
        if seen is None or group.seen is None or chosen.error is None:
            return StoredWeight(layer, chosen.blocks, method, alone, None, None, rows=rows)
        gain = 0.0
        if scaled or chosen.way is not Way.NEAREST:
            own = choice.Layer(storable.matrix(self._floats[layer.node]), layer.size, layer.format)
            plain = choice.error_of(own, Way.NEAREST, seen, self.half)
            gain = 0.0 if plain is None else gain_db(plain, chosen.error)
        return StoredWeight(
            layer,
            chosen.blocks,
            method,
            alone,
            decibel(chosen.error, 0.0),
            gain,
            judged=group.seen.how,
            rows=rows,
            shrink=chosen.shrink,
        )

    def _named(self, layer: StorableLayer, way: Way, scaled: bool) -> str:
        """The method by which a layer was rounded, as users know it."""
        method = self._methods[layer.node]
        if method != "auto":
            return method
        if way is Way.GPTQ:
            return "awq+gptq" if scaled else "gptq"
        return "awq" if scaled or way is Way.CLIP else way.value
