"""Which layers the error of the outputs begins at: at most three, the one that is most to blame first.

A layer that does something wrong is not yet to blame: its error may vanish on the way. So the layers whose own error
is largest are repaired one by one: the quantized graph is run with what the float layer makes of the same inputs in
the place of what the quantized layer makes of them, and everything behind it quantized as it is. What then is missing
from the error at an end is this layer's share of it:

    share = (error at the end - error there with the layer repaired) / error at the end

Ends are outputs, and layers that no other layer reads: what an output behind a Concat, a Softmax or an ArgMax is made
of. An end with less error than the worst one counts that much less. Outputs that are close to float have no suspects,
unless a layer computes something else (`TapNoise.strange`). Where nothing that is repaired alone helps, because several
layers are broken, those whose own error is largest are named.

Then the node is looked for: between a layer and those before it, all tensors that both graphs have are held against
each other in the same way, and the first one with at least half of the error names the node. A bias behind a product
belongs to the layer of that product.

Where all that is wrong is one factor for the whole layer, the layers that read it are named behind it: when a scale was
moved from one to the other, nobody can tell in which of the two it is wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.linear import weight_of
from qcompiler.numerics.sqnr import decibel, noise_power
from qcompiler.runtime.stream import OpenModel
from qcompiler.verification.replay import Repair, Replay, fitting
from qcompiler.verification.taps import Measured, Tap, TapNoise, axis_of, common, replayed

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

FRESH_DB: Final = 32.0  # what INT8 usually leaves of one layer; outputs that are closer have no suspects
MOST: Final = 3
_TRIED: Final = 6  # layers that are repaired
_SAMPLES: Final = 2
_WORTH: Final = 0.1  # share of an error that is worth a name
_EXPLAINED: Final = 0.98  # share of the energy of a tensor that one factor explains, if that is all that is wrong
_LARGEST: Final = 1e30  # noise-to-signal power that stands for infinity
_QUIET_DB: Final = 40.0  # an own error below that is nobody's cause


@dataclass(frozen=True, slots=True)
class Suspect:
    """A layer that the error begins at.

    Attributes:
        node: where it begins: the layer itself, or a node between it and the layers before it.
        op: operator of that node.
        tensor: what the layer computes, by the name that both graphs have for it.
        layer: the node that computes it; for a bias, the node of its layer.
        own_db: SQNR in dB that the layer leaves by itself, on the inputs that it is given.
        end: the tensor whose error it explains best: an output, or a layer that no other layer reads.
        end_db: SQNR in dB there.
        repaired_db: the same with the layer repaired and everything else as it is.
        share: of the error at `end`, 0..1; 0 where nothing that is repaired alone helps.
    """

    node: str
    op: str
    tensor: str
    layer: str
    own_db: float
    end: str
    end_db: float
    repaired_db: float
    share: float


def told(suspects: Sequence[Suspect]) -> str:
    """The suspects as sentences: where it begins, and what that is worth."""
    first, *others = suspects
    text = f"The error begins at node '{first.node}' ({first.op})"
    if first.share:
        text += (
            f": with this layer exact and all else as it is, '{first.end}' has {_db(first.repaired_db)} instead of "
            f"{_db(first.end_db)}"
        )
    else:
        text += f", which leaves {_db(first.own_db)} by itself"
    rest = f" Next to blame: {', '.join(repr(one.node) for one in others)}." if others else ""
    return f"{text}.{rest}"


def _db(value: float) -> str:
    if math.isinf(value):
        return "no error" if value > 0 else "values that are not finite"
    return f"{value:.1f} dB"


def find_suspects(
    float_model: models.Model,
    quantized: models.Model,
    feeds: Sequence[Feeds],
    found: Measured,
    begins: Sequence[str] = (),
    *,
    close_db: float = FRESH_DB,
) -> tuple[Suspect, ...]:
    """Ranks the layers by what their own errors do at the ends.

    Args:
        float_model: in the terms of the quantized one.
        quantized: what was measured.
        feeds: the first two are run.
        found: what was measured at the taps.
        begins: taps that drift, which are named where repairing single layers does not help.
        close_db: SQNR of the ends from which on nobody is to blame.

    Raises:
        ModelError: a graph cannot be run.
    """
    strange = {tap.name for tap in found.taps if found.own[tap.name].strange}
    ends = [tap for tap in found.ends if strange or found.total[tap.name].level > noise_power(close_db)]
    loud = sorted(found.taps, key=lambda tap: -found.own[tap.name].level)
    tried = [tap for tap in loud if found.own[tap.name].level > noise_power(_QUIET_DB)][:_TRIED]
    if not ends or not tried or not feeds:
        return ()
    levels, repaired = _repair(float_model, quantized, feeds[:_SAMPLES], found, (tried, ends))
    worst = max(levels.values())
    ranked = [_best(tap, found, ends, levels, repaired[tap.name], worst) for tap in tried]
    chosen = [(weight, one) for weight, one in ranked if weight >= _WORTH]
    known = {one.tensor for _, one in chosen}
    others = strange - known if chosen else {*strange, *begins}
    chosen += [(0.0, dataclasses.replace(one, share=0.0)) for _, one in ranked if one.tensor in others]
    chosen.sort(key=lambda pair: -round(pair[0], 2))  # stable: among equals the louder first
    first = [one for _, one in chosen[:MOST]]
    if not first:
        return ()
    return tuple(_located(float_model, quantized, feeds[:_SAMPLES], found, first)[:MOST])


def _repair(
    float_model: models.Model,
    quantized: models.Model,
    feeds: Sequence[Feeds],
    found: Measured,
    taps: tuple[Sequence[Tap], Sequence[Tap]],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """TapNoise-to-signal power at the ends: as they are, and by the layer that is repaired."""
    tried, ends = taps
    names = [tap.name for tap in tried]
    replay = Replay(float_model.graph, [tap.name for tap in found.taps], names)
    outputs = [tap.name for tap in ends]
    exact = OpenModel(float_model, outputs=outputs, quick=True)
    repair = Repair(quantized.graph, names, list(dict.fromkeys((*outputs, *replay.reads))))
    plain = {tap.name: TapNoise(axis_of(tap.node)) for tap in ends}
    mended = {name: {tap.name: TapNoise(axis_of(tap.node)) for tap in ends} for name in names}
    for feed in feeds:
        reference, got = exact.run(fitting(feed, exact)), repair.run(feed)
        again = replayed(replay, feed, got)
        for name, noises in (("", plain), *mended.items()):
            outcome = got if not name else _mended(repair, feed, got, {name: again[name]} if name in again else {})
            for end, noise in noises.items():
                noise.add(reference[end], outcome[end])
    return (
        {end: noise.level for end, noise in plain.items()},
        {name: {end: noise.level for end, noise in noises.items()} for name, noises in mended.items()},
    )


def _mended(repair: Repair, feed: Feeds, plain: Feeds, given: Feeds) -> Feeds:
    """The run with something given; as it was where that does not fit."""
    if not given:
        return plain
    try:
        return repair.run(feed, given)
    except (ModelError, DataError):  # sizes that depend on what is broken
        return plain


def _best(
    tap: Tap,
    found: Measured,
    ends: Sequence[Tap],
    levels: Mapping[str, float],
    repaired: Mapping[str, float],
    worst: float,
) -> tuple[float, Suspect]:
    """The end that repairing a layer helps most, and how much that weighs."""
    weights = {
        end.name: _share(levels[end.name], repaired[end.name])
        * min(levels[end.name], 1.0)
        / max(min(worst, 1.0), 1e-30)
        for end in ends
    }
    end = max(weights, key=lambda name: weights[name])
    suspect = Suspect(
        node=tap.node.name,
        op=tap.node.op,
        tensor=tap.name,
        layer=tap.node.name,
        own_db=decibel(found.own[tap.name].level, least=0.0),
        end=end,
        end_db=decibel(levels[end], least=0.0),
        repaired_db=decibel(repaired[end], least=0.0),
        share=_share(levels[end], repaired[end]),
    )
    return weights[end], suspect


def _share(before: float, after: float) -> float:
    if before == 0 or not math.isfinite(after):
        return 0.0
    return 1.0 if math.isinf(before) else max(0.0, 1 - after / before)


def _located(
    float_model: models.Model, quantized: models.Model, feeds: Sequence[Feeds], found: Measured, chosen: list[Suspect]
) -> list[Suspect]:
    """The suspects, each with the node at which its error begins, and behind it those that cannot be told from it."""
    taps = {tap.name: tap for tap in found.taps}
    graph = float_model.graph
    inside = {one.tensor: _between(graph, taps[one.tensor].node, frozenset(taps)) for one in chosen}
    nodes = {one: common(graph, quantized.graph, between) for one, between in inside.items()}
    every = {node.outputs[0].name: node for listed in nodes.values() for node in listed}
    noises = {name: TapNoise(axis_of(node)) for name, node in every.items()}
    factors = {one.tensor: _Factor() for one in chosen}
    replay = Replay(graph, list(dict.fromkeys((*taps, *every))), list(every))
    rounded = OpenModel(quantized, outputs=list(dict.fromkeys((*every, *replay.reads))), quick=True)
    for feed in feeds:
        got = rounded.run(fitting(feed, rounded))
        again = replayed(replay, feed, got)
        for name in (name for name in every if name in again and again[name].shape == got[name].shape):
            noises[name].add(again[name], got[name])
            if name in factors:
                factors[name].add(again[name], got[name])
    done: list[Suspect] = []
    known = {one.tensor for one in chosen}
    for one in chosen:
        levels = [(noises[node.outputs[0].name].level, node) for node in nodes[one.tensor]]
        most = max((level for level, _ in levels), default=0.0)
        first = next((node for level, node in levels if most and level >= min(most, _LARGEST) / 2), None)
        begins = taps[one.tensor].node if first is None else first
        done.append(dataclasses.replace(one, node=begins.name, op=begins.op, layer=_layer(begins, one, taps)))
        if begins is taps[one.tensor].node and factors[one.tensor].one:
            done += [_twin(tap, found, one) for tap in _reading(one.tensor, found) if tap.name not in known]
    return done


def _reading(tensor: str, found: Measured) -> list[Tap]:
    """The layers whose weights read a tapped tensor, also behind a product of it with another activation."""
    waiting, reading = [tensor], list[Tap]()
    while waiting:
        one = waiting.pop()
        for tap in (tap for tap in found.taps if tap.layer and one in found.before[tap.name]):
            if weight_of(tap.node) is None:
                waiting.append(tap.name)
            elif tap not in reading:
                reading.append(tap)
    return reading


def _layer(node: gs.Node, one: Suspect, taps: Mapping[str, Tap]) -> str:
    """The layer that a node belongs to: a bias to the product in front of it, anything else to what it leads to."""
    reads = [tensor for tensor in node.inputs if not graphs.is_constant(tensor)]
    before = taps.get(reads[0].name) if len(reads) == 1 and graphs.is_op(node, "Add", "Sub") else None
    return before.node.name if before is not None and before.layer else one.layer


def _twin(tap: Tap, found: Measured, first: Suspect) -> Suspect:
    """A layer that cannot be told from a suspect."""
    own = decibel(found.own[tap.name].level, least=0.0)
    name = tap.node.name
    return Suspect(name, tap.node.op, tap.name, name, own, first.end, first.end_db, first.end_db, 0.0)


class _Factor:
    """Whether one tensor is another one times a number."""

    def __init__(self) -> None:
        self._sums = np.zeros(3)

    def add(self, reference: Array, got: Array) -> None:
        """Counts one sample."""
        a, b = reference.astype(np.float64).reshape(-1), got.astype(np.float64).reshape(-1)
        endless = not (np.isfinite(a).all() and np.isfinite(b).all())
        self._sums += np.inf if endless else np.array([a @ a, a @ b, b @ b])

    @property
    def one(self) -> bool:
        """It is, and the number is not 1."""
        own, both, other = self._sums
        if not np.isfinite(self._sums).all() or min(own, other) <= 0 or both <= 0:
            return False
        explained = both * both / (own * other)
        return bool(explained > _EXPLAINED and abs(math.log2(both / own)) > 1)


def _between(graph: gs.Graph, last: gs.Node, cuts: frozenset[str]) -> list[gs.Node]:
    """The nodes that a tapped tensor is computed by, back to the taps before it, in graph order."""
    waiting, found = [last], {id(last)}
    while waiting:
        for tensor in waiting.pop().inputs:
            maker = tensor.inputs[0] if tensor.inputs else None
            if maker is not None and tensor.name not in cuts and id(maker) not in found:
                found.add(id(maker))
                waiting.append(maker)
    return [node for node in graph.nodes if id(node) in found]
