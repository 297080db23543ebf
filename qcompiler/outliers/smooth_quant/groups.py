"""How much of each activation's range moves into the weights: the alpha of SmoothQuant, chosen layer by layer.

    s_j = max|x_j|^α / max|w_j|^(1-α),   x' = x / s,   W' = s · W        (Xiao et al. 2023, "SmoothQuant", equation 4)

Layers that read the same activation share s, channels that one producer ties together share one s_j. With `auto`, each
alpha of a grid is judged by what the layers would really compute: rows of the activation that were recorded once are
quantized with one static range for the tensor, the weights with a scale per output channel, and the product is compared
with the float one. No run of the model is needed for an alpha. Nothing is smoothed where that does not help.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.ir.operators import PRODUCTS
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Views
from qcompiler.numerics.rounding import Format
from qcompiler.outliers.equalized import moved
from qcompiler.outliers.smooth_quant.alpha import ALPHAS, WORTH_DB, Choice, Layers
from qcompiler.outliers.smooth_quant.fitting import Remains
from qcompiler.outliers.smooth_quant.refine import least_looks, refine
from qcompiler.passes.absorb import absorb
from qcompiler.plan import Candidate
from qcompiler.planning.simulation.probe import Probe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations, histograms
from qcompiler.statistics.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.statistics.outliers import Outliers


def _nothing() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class SmoothGroup:
    """Layers that read one activation, and what was decided for them.

    Attributes:
        tensor: the activation.
        readers: names of the layers.
        alpha: chosen; None where the group is not smoothed.
        how: `absorbed`, `inserted`, or empty.
        why: the reason, with figures.
        gain_db: by how much the error of the layers' own outputs falls; 0.0 where nothing is smoothed.
        scales: what the activation is divided by, float32 [C]; empty where nothing is smoothed.
        trial: the same, had one fold of the samples not been seen.
    """

    tensor: str
    readers: tuple[str, ...]
    alpha: float | None
    how: str
    why: str
    gain_db: float = 0.0
    scales: NDArray[np.float32] = field(default_factory=_nothing, repr=False, compare=False)
    trial: NDArray[np.float32] = field(default_factory=_nothing, repr=False, compare=False)


def choose_scales(
    model: models.Model,
    groups: Mapping[str, Sequence[Candidate]],
    rows: Mapping[str, Rows],
    outliers: Mapping[str, Outliers],
    wanted: SmoothQuantTable,
    *,
    format: Format = "int8",
    calibrator: str = "auto",
    per_channel: bool = True,
    feeds: Sequence[Feeds] = (),
    views: Views | None = None,
    folds: Sequence[int] = (),
    looks: int = 0,
    hold: int | None = None,
    known: dict[str, Choice] | None = None,
    remains: Mapping[str, Remains] | None = None,
) -> list[SmoothGroup]:
    """Decides alpha and scales of every group.

    Args:
        model: the float model, normalised.
        groups: candidates by the activation that they share.
        rows: recorded rows of these activations.
        outliers: their statistics over all data, for the largest |x| of each channel.
        wanted: the recipe's table.
        format: what the layers will compute in.
        calibrator: how their range will be chosen; `auto` tries the least squared error and the whole range.
        per_channel: weight scales per output channel, else per tensor.
        feeds: samples on which the layers that matter most are judged by the outputs of the model.
        views: what is judged; None for what the graph tells.
        folds: the part of the data that each of `feeds` belongs to.
        looks: how many times the outputs may be looked at.
        hold: the fold of the samples that trials must not have seen.
        known: what each group's own error has chosen, of an earlier call with the same but for the samples and looks;
            it gets what is not known yet.
        remains: by activation, what fitting will leave of the error of rounding weights; None where nothing is fitted.

    Returns:
        One entry a group, in the order of `groups`.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph.nodes}
    tensors = graph.tensors()
    found: dict[str, tuple[Layers, Choice, str]] = {}
    refused: dict[str, str] = {}
    known = {} if known is None else known
    for name, members in groups.items():
        reason = _refusal(members, wanted)
        fold = None if reason else absorb.find_moves(graph, tensors[name], channel_axis(members), split=True)
        if fold is None or (fold.why and not wanted.insert):
            refused[name] = reason or f"no producer can absorb it: {'' if fold is None else fold.why}"
            continue
        reason = _unknown(rows.get(name), outliers.get(name))
        weights = None if reason else _matrices([nodes[member.node] for member in members])
        if weights is None:
            refused[name] = reason or "a weight is computed on the way, has several groups, or too many dimensions"
            continue
        layers = Layers(
            rows[name],
            weights,
            [member.axis is not None and per_channel for member in members],
            _reached(outliers[name].channels, rows[name].values),
            None if fold.why else fold.classes,
            calibrator,
            format,
            _without(outliers[name], rows[name]),
            (remains or {}).get(name),
        )
        if name not in known:
            known[name] = layers.choose(_alphas(_names(members), wanted))
        found[name] = layers, known[name], "inserted" if fold.why else "absorbed"
    if feeds and found:
        products = [name for name in found if groups[name][0].op in PRODUCTS]
        free = [name for name in products if len(_alphas(_names(groups[name]), wanted)) > 1]
        if free and looks >= least_looks(len(free), format):
            probe = Probe(model, {name: _names(groups[name]) for name in free}, feeds, folds, views)
            local = {name: (layers, choice) for name, (layers, choice, _) in found.items()}
            for name, choice in refine(probe, local, free, looks).items():
                layers, _, how = found[name]
                found[name] = layers, choice, how
    return [
        SmoothGroup(name, _names(members), None, "", refused[name])
        if name in refused
        else _decided(name, _names(members), *found[name], hold)
        for name, members in groups.items()
    ]


def _reached(channels: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Largest |x| of each channel, with padding: statistics leave it out, but it is computed and reaches further."""
    return np.asarray(np.maximum(channels, np.abs(values).max(axis=0, initial=0.0)), np.float64)


def _without(seen: Outliers, rows: Rows) -> dict[int, NDArray[np.float64]]:
    """By fold that rows were recorded of: what the channels of all other samples reach."""
    folds = [int(fold) for fold in np.unique(rows.folds)]
    if len(folds) < 2:
        return {}
    return {fold: _reached(seen.without(fold), rows.values[rows.folds != fold]) for fold in folds}


def channel_axis(members: Sequence[Candidate]) -> int:
    """Where the input channels of these layers lie in their activation."""
    return 1 if members[0].op.startswith("Conv") else -1


def channel_axes(groups: Mapping[str, Sequence[Candidate]], wanted: SmoothQuantTable) -> dict[str, int]:
    """Activations that may be smoothed, with their channel axis."""
    ops = (*PRODUCTS, "Conv") if wanted.convolutions else PRODUCTS
    return {name: channel_axis(members) for name, members in groups.items() if members[0].op in ops}


def divisible(graph: gs.Graph, groups: Mapping[str, Sequence[Candidate]], wanted: SmoothQuantTable) -> dict[str, int]:
    """Those of `channel_axes` whose division something in front can take, or an inserted Mul."""
    tensors = graph.tensors()
    return {
        name: axis
        for name, axis in channel_axes(groups, wanted).items()
        if wanted.insert or not absorb.find_moves(graph, tensors[name], axis, split=True).why
    }


def _names(members: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(member.node for member in members)


def _decided(
    name: str, readers: tuple[str, ...], layers: Layers, choice: Choice, how: str, hold: int | None
) -> SmoothGroup:
    if choice.alpha is None:
        return SmoothGroup(name, readers, None, "", f"no alpha gains {WORTH_DB:g} dB")
    why = f"its layers err {choice.gain_db:.1f} dB less"
    trial = layers.scales(choice.alpha, hold if hold in layers.others else None)
    return SmoothGroup(name, readers, choice.alpha, how, why, choice.gain_db, choice.scales, trial)


def record_of(decided: Sequence[SmoothGroup], tried: Mapping[str, float]) -> dict[str, Any] | None:
    """What the manifest says of smoothing; None where it was off. `tried`: SQNR in dB of each way that was compared."""
    if not decided:
        return None
    how = [group.how for group in decided]
    return {
        "groups": [
            {
                "tensor": group.tensor,
                "readers": group.readers,
                "alpha": group.alpha,
                "how": group.how,
                "why": group.why,
                "gain_db": round(group.gain_db, 3),
            }
            for group in decided
        ],
        "folded": how.count("absorbed"),
        "inserted": how.count("inserted"),
        "skipped": how.count(""),
        "tried": {label: round(reached, 2) for label, reached in tried.items()},
    }


def _refusal(members: Sequence[Candidate], wanted: SmoothQuantTable) -> str:
    """Why nobody wants a group smoothed; empty where somebody may."""
    if wanted.alpha == "off" and not wanted.layers:
        return "smoothing is off"
    if members[0].op not in PRODUCTS and not (wanted.convolutions and members[0].op == "Conv"):
        return "convolutions are only smoothed on request (smooth_quant.convolutions)"
    return ""


def _unknown(rows: Rows | None, seen: Outliers | None) -> str:
    """Why nothing can be said of an activation; empty where something can."""
    if rows is None or seen is None or not len(rows.values):
        return "nothing was observed of its activation"
    if len(seen.channels) != rows.values.shape[1]:
        return "the number of its channels varies"
    return "" if seen.channels.any() else "nothing but zeros was observed of its activation"


def _alphas(readers: Iterable[str], wanted: SmoothQuantTable) -> Sequence[float]:
    """The alphas to choose from for a group: several, one, or none."""
    for pattern, alpha in (wanted.layers or {}).items():
        if any(re.search(pattern, reader) for reader in readers):
            return (alpha,)
    if wanted.alpha == "auto":
        return ALPHAS
    return () if isinstance(wanted.alpha, str) else (wanted.alpha,)


def _matrices(nodes: Sequence[gs.Node]) -> Sequence[NDArray[np.float32]] | None:
    """The weights as [C, outputs]; None where one of them is not two-dimensional."""
    return linear.Matrices(nodes) if all(linear.matrix_shape(node) for node in nodes) else None


def observed_again(
    before: models.Model,
    after: models.Model,
    observed: Observations,
    names: Sequence[str],
    decided: Sequence[SmoothGroup],
) -> dict[str, Histogram]:
    """Histograms of tensors that smoothing has changed or made, over the kept feeds.

    What a smoothed tensor reaches over all data is known from its channels, so its histogram gets that value too.

    Args:
        before: the graph that was observed.
        after: the smoothed one.
        observed: what was observed.
        names: float tensors of `after` that somebody wants to know of.
        decided: what was smoothed.
    """
    found = histograms(after, moved(before, after, observed, names), observed.kept)
    readers = {reader: group for group in decided for reader in group.readers if group.alpha is not None}
    for node in after.graph.nodes:
        group = readers.get(node.name)
        if group is not None and node.inputs[0].name in found:
            most = np.asarray([np.max(observed.outliers[group.tensor].channels / group.scales)], np.float32)
            found[node.inputs[0].name].update(most)
    return found
