"""Rounding of every layer's weight by one method, and what each then costs its outputs.

    rtn        nearest integers, whole range of each block
    mse        the range of each block that errs least over its weights
    awq        the range of each block that errs least in the outputs; the scaling has been folded before
    gptq       integers chosen channel by channel, each making up for the errors of those before it
    awq+gptq   the scaling of the one, the rounding of the other

What a layer errs is judged by its own outputs: Σ |x·(Ŵ - W)|² / Σ |x·W|², over all rows of the data for gptq, over
recorded ones for the others. Without data there is nothing but the weights to judge by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import Blocks
from qcompiler.numerics.sqnr import decibel, sqnr_of
from qcompiler.statistics import hessian
from qcompiler.statistics.rows import Rows
from qcompiler.weight_only import awq, gptq, storable
from qcompiler.weight_only.storable import StorableLayer
from qcompiler.weight_only.stored import StoredWeight

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray


MOST_WORK = 2e11  # multiply-accumulates that a figure of one layer may take


def methods(layers: Iterable[StorableLayer], method: str) -> dict[str, str]:
    """The method of each layer: beside INT4 blocks, INT8 errs so little that its own grid is all it needs."""
    known = list(layers)
    mixed = any(one.format == "int4" for one in known)
    return {one.node: "mse" if mixed and one.format == "int8" else method for one in known}


def watched(layers: Iterable[StorableLayer], method: str) -> dict[str, int]:
    """The activations that GPTQ needs a Hessian of, with their channels."""
    known = list(layers)
    chosen = methods(known, method)
    return {one.activation: one.depth for one in known if chosen[one.node].endswith("gptq")}


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding needs to know of all layers.

    Attributes:
        normal: the float model before AWQ's scaling.
        scaled: the one behind it; the same where nothing was scaled.
        layers: of `scaled`, with the names that activations have there.
        before: by node, the name of its activation in `normal`.
        rows: recorded rows of the activations of `normal`, by name.
        scales: what activations of `normal` were divided by.
        method: `rtn`, `mse`, `awq`, `gptq` or `awq+gptq`.
        half: scales are numbers that FP16 holds exactly.
        damp: of GPTQ, see `gptq.factor`.
        act_order: likewise.
    """

    normal: models.Model
    scaled: models.Model
    layers: Sequence[StorableLayer]
    before: Mapping[str, str]
    rows: Mapping[str, Rows]
    scales: Mapping[str, NDArray[np.float32]]
    method: str
    half: bool
    damp: float = 0.01
    act_order: bool = True

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
        self, samples: Iterable[Feeds] | None, advance: Callable[[int], None] | None = None
    ) -> Iterator[StoredWeight]:
        """All layers, in an order that needs few Hessians at a time.

        Args:
            samples: what GPTQ sums Hessians over; None without data, and then nothing is rounded by it.
            advance: called with the number of runs of the model since the last call.
        """
        groups = dict(storable.by_activation(self.layers))
        depths = watched(self.layers, self.method) if samples is not None else {}
        for name in groups.keys() - depths.keys() if depths else ():
            yield from self._group(groups.pop(name), None)
        for part in hessian.hessians(self.scaled, depths, samples or (), advance=advance) if depths else ():
            for name, found in part.items():
                yield from self._group(groups.pop(name), found)
        for members in groups.values():
            yield from self._group(members, None)

    def _group(self, members: Sequence[StorableLayer], found: hessian.Hessian | None) -> Iterator[StoredWeight]:
        before = self.before[members[0].node]
        rows, scales = self.rows.get(before), self.scales.get(before)
        factors: dict[int | None, gptq.Factor] = {}
        if rows is not None and scales is not None:
            rows = Rows(rows.values / scales, rows.counts)
        seen = found if found is not None else None if rows is None else hessian.of_rows(rows.values, rows.counts)
        for one in members:
            if self._methods[one.node].endswith("gptq") and found is not None and one.size not in factors:
                factors[one.size] = gptq.factor(found, size=one.size, damp=self.damp, act_order=self.act_order)
            yield self._one(one, factors.get(one.size), rows, seen, scales)

    def _one(
        self,
        layer: StorableLayer,
        found: gptq.Factor | None,
        rows: Rows | None,
        seen: hessian.Hessian | None,
        scales: NDArray[np.float32] | None,
    ) -> StoredWeight:
        weight, method = storable.matrix(self._nodes[layer.node]), self._methods[layer.node]
        stored = self._rounded(layer, weight, found, rows)
        difference = blocks.dequantize(stored) - weight
        alone = sqnr_of(weight, difference)
        if seen is None or layer.depth**2 * layer.width > MOST_WORK:
            return StoredWeight(layer, stored, method, alone, None, None)
        output = decibel(hessian.error(weight, seen, difference), 0.0)
        if method == "rtn":
            return StoredWeight(layer, stored, method, alone, output, 0.0)
        own = storable.matrix(self._floats[layer.node])
        nearest = blocks.round_to_nearest(own, layer.size, layer.format, half=self.half)
        undone = seen if scales is None else seen * np.outer(scales, scales)
        plain = decibel(hessian.error(own, undone, blocks.dequantize(nearest) - own), 0.0)
        return StoredWeight(layer, stored, method, alone, output, output - plain)

    def _rounded(
        self, layer: StorableLayer, weight: NDArray[np.float32], found: gptq.Factor | None, rows: Rows | None
    ) -> Blocks:
        size, format, method = layer.size, layer.format, self._methods[layer.node]
        if method.endswith("gptq") and found is not None:
            return gptq.gptq(weight, found, size=size, format=format, half=self.half)
        if method == "awq" and rows is not None:
            return awq.clip(weight, rows, size=size, format=format, half=self.half)
        if method == "rtn":
            return blocks.round_to_nearest(weight, size, format, half=self.half)
        return blocks.clip_by_error(weight, size, format, half=self.half)
