"""`sensitivity()`: which layers of a model low precision hurts, in which format, and whether weights or activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from qcompiler.data import find_batch
from qcompiler.data.batches import samples_of
from qcompiler.data.deal import deal
from qcompiler.data.source import Data, open_source, prepared, suited
from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.ir.macs import tensors_for_shapes
from qcompiler.ir.signature import inputs_of
from qcompiler.numerics.sqnr import decibel, gain_db
from qcompiler.passes.fixed import fixed, fixed_by
from qcompiler.passes.importing import imported
from qcompiler.passes.known_part import known_part
from qcompiler.passes.pipelines import clean_up
from qcompiler.plan import Candidate
from qcompiler.planning.placement import candidates, few_rows, routers
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.profile import USUAL, shapes_at, shapes_of_many
from qcompiler.planning.search import evidence
from qcompiler.recipe.budget import budget_of
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import shapes
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.runtime.work import count_macs
from qcompiler.statistics.observe import Observations, observe
from qcompiler.statistics.outliers import Outliers
from qcompiler.statistics.points import Points
from qcompiler.support.as_json import plain
from qcompiler.support.progress import Progress, silent
from qcompiler.target import DType, Target
from qcompiler.tools.sensitivity.certainty import SampleEvidence
from qcompiler.tools.sensitivity.formats import DEFAULT, parse
from qcompiler.tools.sensitivity.layer_study import MOST, Study, StudyErrors
from qcompiler.tools.sensitivity.sampling import Pool, Sampled, first_of, on_all, on_few
from qcompiler.verification.blame import blaming
from qcompiler.verification.reading import read

FEW: Final = 4  # samples that are kept to look at, whatever layers are measured on
EVEN_DB: Final = 3.0  # errors that are closer than this count as equal
TOKENS: Final = 10.0  # largest over median from which a token spikes
CHANNELS: Final = 4.0  # the same for channels; bell curves have less than 1.5


@dataclass(frozen=True, slots=True)
class Effect:
    """What one format does to one group of layers, as SQNR in dB; 200 stands for no error.

    Attributes:
        weights_db: of the layers' own outputs, with only their weights in the format.
        activations_db: the same with only the activation; None where the format is for weights.
        layer_db: the same with both.
        outputs_db: of the outputs of the model, with both and everything else float.
        error_db: standard error of `outputs_db`; 0 where all samples were run, None where one says nothing of it.
        rest_db: of the outputs, predicted, if this group and all worse ones stay float and all others take the format.
    """

    weights_db: float
    activations_db: float | None
    layer_db: float
    outputs_db: float
    error_db: float | None
    rest_db: float

    @property
    def limit(self) -> str:
        """What the error comes from: weights, activations or both."""
        if self.activations_db is None or self.weights_db < self.activations_db - EVEN_DB:
            return "weights"
        return "activations" if self.activations_db < self.weights_db - EVEN_DB else "both"


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that read one activation, and therefore share its scale.

    Attributes:
        activation: the tensor.
        layers: names of the nodes.
        op: their operator.
        macs: multiply-accumulates of one sample.
        share: of the model's, 0..1.
        effects: by format.
        tokens: largest token over median token, mean over samples (QFeM's ratio); much above 10: single tokens spike.
        token: the largest one, as `position 0` or `position 0 (id 101)`; empty where there are no tokens.
        channels: largest channel over median channel; None where the number of channels varies.
        channel: index of the largest one; None likewise.
        order_certain: in the first format the next group does certainly less harm; where there is none, it is true.
        helps: what is worth trying, first things first; empty where the first format does no harm.
    """

    activation: str
    layers: tuple[str, ...]
    op: str
    macs: int
    share: float
    effects: Mapping[str, Effect]
    tokens: float
    token: str
    channels: float | None
    channel: int | None
    order_certain: bool = True
    helps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found.

    Attributes:
        file: the model's file name.
        target: what "can be quantized" refers to.
        data: its name, how many feeds set the ranges and how many samples errors were measured on.
        sampled: on how many samples the figures rest, and whether they are an estimate.
        correlation: by format, the rank correlation that is to be expected with figures of all samples, 0..1; None
            where that cannot be told.
        formats: those that were studied; the first one ranks the groups.
        buildable: by format, why no engine for the target can be built with it; empty where one can.
        predicted_db: by format, SQNR of the outputs with all groups in it, from the sum of their noises: a guess.
        budget_db: what each group may cost at the outputs alone, so that all together meet the recipe's target.
        groups: the most harmful first.
        refused: how many linear layers the rules keep float, by rule.
    """

    file: str
    target: str
    data: str
    sampled: Sampled
    correlation: Mapping[str, float | None]
    formats: tuple[str, ...]
    buildable: Mapping[str, str]
    predicted_db: Mapping[str, float]
    budget_db: float
    groups: tuple[LayerGroup, ...]
    refused: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data: single figures, `formats` as a list of records, then `groups` with a record per format."""
        formats = [
            {
                "format": name,
                "predicted_db": self.predicted_db[name],
                "buildable": not self.buildable[name],
                "why_not": self.buildable[name],
            }
            for name in self.formats
        ]
        found: dict[str, Any] = plain(
            {
                "file": self.file,
                "target": self.target,
                "data": self.data,
                "measured": self._measured(),
                "budget_db": self.budget_db,
                "stays_float": self.refused,
                "formats": formats,
                "groups": [_record(group) for group in self.groups],
            }
        )
        return found

    def _measured(self) -> dict[str, Any]:
        one = self.sampled
        return {
            "how": "exact" if one.samples >= one.total else "estimate",
            "samples": one.samples,
            "of": one.total,
            "runs": round(one.runs),
            "rank_correlation": self.correlation,
        }


def _record(group: LayerGroup) -> dict[str, Any]:
    effects = {
        name: {**{key: getattr(effect, key) for key in Effect.__dataclass_fields__}, "limit": effect.limit}
        for name, effect in group.effects.items()
    }
    return {**{key: getattr(group, key) for key in LayerGroup.__dataclass_fields__}, "effects": effects}


def sensitivity(
    model: str | Path | models.Model,
    *,
    data: Data,
    formats: str | Iterable[str] = DEFAULT,
    exact: bool = False,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Rounds every group of layers alone, in every format, and measures what that does to the model.

    That is an estimate, from as many samples as it takes to rank the groups as all of them would; each figure has its
    standard error.

    Nothing is written or built, so formats that no engine has can be studied too. All layers that the rules of the
    target let through are measured, with one scale per activation as INT8 and FP8 have it.

    Args:
        model: a float ONNX file, or a loaded model.
        data: samples; a part of them sets the ranges, and some are measured on, first those that set none.
        formats: some of int8, fp8, e5m2, int4, nf4, fp4, as a list or separated by commas; the first one ranks.
        exact: measure on all samples, however long that takes.
        recipe: its target, `keep`, `samples`, `batch`, `batch_axis`, `fix_input`, `fix_shape`,
            `weight_granularity`, `effort` or `search_time`, `safety.target_sqnr_db` and, for INT4,
            `weight_only.block_size` are used.
        progress: where stages are shown.

    Raises:
        UsageError: an unknown format; the data is not a form of data.
        ModelError: the file cannot be read or run, or nothing in it can be quantized.
        DataError: the data does not fit the model.
        EngineError: the recipe's target does not exist.
    """
    recipe, progress = recipe or Recipe(), progress or silent
    target = recipe.resolve()
    chosen = parse(formats, recipe.weight_only.block_size, half=target.high_precision is not DType.FP32)
    with progress.stage("load"):
        whole, _ = fixed(read(model), fixed_by(recipe.fix_input, recipe.fix_shape))
        loaded = imported(known_part(whole).model)
        inputs = inputs_of(loaded.graph)
        shown = prepared(suited(data, loaded.graph), recipe.preprocess)
        source = open_source(shown, inputs, samples=recipe.samples, batch=recipe.batch, stored=loaded.ends)
    with progress.stage("clean_up"):
        normal = models.copy(loaded)
        clean_up(target)(normal.graph)
        shapes.infer(normal)
        layers = candidates.find_candidates(normal.graph, target, recipe.keep)
    name = loaded.source.name if loaded.source else "the model"
    _require(layers, name, target)
    groups = layers.by_activation
    with blaming("sensitivity", loaded), progress.stage("observe", recipe.samples) as stage:
        axes = find_batch.find(normal.graph, source, inputs, recipe.batch_axis or {})
        parts = deal(source.along(axes))
        channels = {tensor: 1 if members[0].op.startswith("Conv") else -1 for tensor, members in groups.items()}
        observed = observe(
            normal,
            Points.of(histograms=groups, outliers=channels),
            parts.calibrate,
            axes=axes,
            choose=parts.choose or parts.judge,
            judge=parts.judge if parts.choose is not None else None,
            keep=FEW,
            advance=stage.advance,
        )
        lacking = evidence.look(normal, layers.found, observed)
    return_freed_memory()
    for text in lacking.warnings:
        progress.warn(text)
    sizes = concrete_shapes(normal.graph, observed.kept[0], tensors_for_shapes(normal.graph))
    served = shapes_of_many(normal.graph, observed, recipe.shapes, list(sizes))
    layers = layers.refusing(candidates.small(normal.graph, layers.found, served, target))  # as the compiler does
    usual = shapes_at(normal.graph, observed, recipe.shapes, USUAL, list(sizes))
    macs = count_macs(normal.graph, observed.kept[0], sizes)
    layers = layers.refusing(
        few_rows.refusals(normal.graph, layers.found, usual, macs, target, recipe.safety.min_share)
    )
    layers = layers.refusing(routers.refusals(normal.graph, layers.found, macs, recipe.safety.min_share))
    layers = layers.refusing(candidates.not_numbers(layers.found, observed.histograms))
    left = {one.node for one in layers.found}
    layers = layers.refusing(one for one in lacking.refused if one.node in left)
    _require(layers, name, target)
    groups = layers.by_activation
    with blaming("sensitivity", loaded), progress.stage("study") as stage:
        study = Study(
            normal,
            groups,
            observed.histograms,
            observed.choosing[0],
            chosen,
            macs=macs,
            shapes=sizes,
            samples=MOST if exact else min(MOST, first_of(len(groups))),
            per_channel=recipe.weight_granularity == "channel",
        )
        every = (part for part in (parts.calibrate, parts.choose, parts.judge) if part is not None)
        feeds = (one for part in every for feed in part for one in samples_of(feed, axes))
        if exact:
            found, sampled = on_all(study, feeds, _samples(observed), stage)
        else:
            pool = Pool.of(feeds)
            runs = budget_of(recipe.effort, recipe.search_time, sum(macs.values()), pool.total)
            found, sampled = on_few(study, pool, runs, stage)
    budget = recipe.safety.target_sqnr_db + gain_db(len(groups), 1)
    note = "; made up, so the figures mean nothing" if source.random else "; in sample" if observed.in_sample else ""
    evident = sampled.evidence(found)
    return Sensitivity(
        file=name,
        target=str(target),
        data=f"{source.name}: ranges from {_some(parts.samples[0], 'feed')}, {_said(sampled)}{note}",
        sampled=sampled,
        correlation={name: one.expected_correlation() for name, one in evident.items()},
        formats=tuple(one.name for one in chosen),
        buildable={one.name: one.why_not(target) for one in chosen},
        predicted_db={name: decibel(float(one.noise().sum())) for name, one in evident.items()},
        budget_db=budget,
        groups=tuple(
            _ranked(
                groups, found, evident, observed, macs, [one.name for one in chosen if not one.why_not(target)], budget
            )
        ),
        refused=dict(Counter(one.rule for one in layers.refused).most_common()),
    )


def _require(layers: Candidates, name: str, target: Target) -> None:
    """Raises ModelError where nothing can be studied."""
    if layers.found:
        return
    why = f": {layers.refused[-1].why}" if layers.refused else ": it has no Conv, Gemm or MatMul"
    raise ModelError(f"nothing in {name} can be quantized for {target}{why}; `qcompiler inspect` lists every layer")


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _said(sampled: Sampled) -> str:
    if sampled.samples >= sampled.total:
        return f"errors on all {_some(sampled.samples, 'sample')}"
    return f"errors estimated from {sampled.samples} of {_some(sampled.total, 'sample')}"


def _samples(observed: Observations) -> int:
    """How many samples the data has."""
    found = 0
    for combination, count in observed.shapes.seen.items():
        feed = {name: np.broadcast_to(np.float32(0), shape) for name, shape in combination}
        found += count * observed.axes.count(feed)
    return found


def _ranked(
    groups: Mapping[str, Sequence[Candidate]],
    found: StudyErrors,
    evident: Mapping[str, SampleEvidence],
    observed: Observations,
    macs: Mapping[str, int],
    buildable: Sequence[str],
    budget: float,
) -> Iterator[LayerGroup]:
    """The most harmful in the first format first."""
    names = list(evident)
    noise = {name: one.noise() for name, one in evident.items()}
    doubts = {name: one.standard_error_db() for name, one in evident.items()}
    order = sorted(range(len(found.groups)), key=lambda one: -noise[names[0]][one])
    sure = evident[names[0]].sure_of_next(order)
    left = {name: float(powers.sum()) for name, powers in noise.items()}
    total = max(sum(macs.values()), 1)
    for place, at in enumerate(order):
        activation = found.groups[at]
        effects = {}
        for name in names:
            own, outputs, doubt = found.own[activation][name], float(noise[name][at]), float(doubts[name][at])
            left[name] -= outputs
            effects[name] = Effect(
                decibel(own.weights),
                None if own.activations is None else decibel(own.activations),
                decibel(own.layer),
                decibel(outputs),
                doubt if math.isfinite(doubt) else None,
                decibel(max(left[name], 0.0)),
            )
        members = groups[activation]
        own_macs = sum(macs.get(c.node, 0) for c in members)
        tokens, token, channels, channel = _outliers(observed.outliers[activation])
        yield LayerGroup(
            activation,
            tuple(c.node for c in members),
            members[0].op,
            own_macs,
            own_macs / total,
            effects,
            tokens,
            token,
            channels,
            channel,
            sure[place],
            tuple(_helps(effects, members[0].op, tokens, channels or 1.0, buildable, budget)),
        )


def _outliers(found: Outliers) -> tuple[float, str, float | None, int | None]:
    """Ratio and name of the largest token, ratio and index of the largest channel."""
    top = found.top[0] if found.top else None
    known = "" if top is None or top.id is None else f" (id {top.id})"
    token = "" if top is None else f"position {top.position}{known}"
    if not found.channels.size:
        return found.ratio, token, None, None
    largest, median = float(found.channels.max()), float(np.median(found.channels))
    ratio = largest / median if median else math.inf if largest else 1.0
    return found.ratio, token, ratio, int(found.channels.argmax())


def _helps(
    effects: Mapping[str, Effect], op: str, tokens: float, channels: float, buildable: Sequence[str], budget: float
) -> Iterator[str]:
    """Remedies in the order of what they cost in speed; `keep` where there is no other."""
    first, effect = next(iter(effects.items()))
    if effect.outputs_db >= budget:
        return
    some = False
    for name, fits in (
        ("smooth-quant", effect.limit != "weights" and channels >= CHANNELS),
        ("equalize", effect.limit != "activations" and op == "Conv"),
        *((one, one != first and effects[one].outputs_db >= effect.outputs_db + EVEN_DB) for one in buildable),
        ("qfem", tokens >= TOKENS),  # a token that spikes multiplies the rounding of weights too
    ):
        if fits:
            some = True
            yield name
    if not some:
        yield "keep"
