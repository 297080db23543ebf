"""What a plan is searched with: small layers out, formats and ranges on offer, the session that tries them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.calibrators.auto import AUTO, AUTO_RANGES, FP8_RANGES
from qcompiler.ir import model as models
from qcompiler.ir.macs import Shapes, tensors_for_shapes
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Views, find_views, weighed
from qcompiler.plan import Refusal
from qcompiler.planning.chosen import Planning
from qcompiler.planning.placement import candidates, few_rows, rounds, routers
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.profile import USUAL, shapes_at, shapes_of_many
from qcompiler.planning.search import evidence, outputs, safety_net, weight_ranges
from qcompiler.planning.search.offers import given_scales, offered_uses
from qcompiler.planning.search.safety_net import FEW
from qcompiler.planning.search.take import Pinned
from qcompiler.planning.simulation.noise import share_trials
from qcompiler.planning.simulation.simulator import Grids, Simulation, Use, formats_of
from qcompiler.recipe.budget import LEAST_RUN, for_layers, seconds_of
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.runtime.work import count_macs
from qcompiler.statistics.evidence import Lack
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations, peaks
from qcompiler.statistics.timed import Timed
from qcompiler.support.each import Others
from qcompiler.support.foreseen import NOTHING, Foreseen
from qcompiler.target import DType, Target
from qcompiler.verification.metrics.halves import MetricHalves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Corrections = dict[str, NDArray[np.float32]]


HEADROOM = "headroom"  # the name of that calibrator
ROOM_DB = 5.0  # above the goal: ranges cost nothing where the model runs, so others are tried unless there is room
COMPARED = 16  # plans that there is room for: ranges of five calibrators, and what the changes run
LEAST_SAMPLES = 2


@dataclass(frozen=True, eq=False)
class Ready:
    """What a plan is searched with: the layers that there are to decide about, and the session that tries them.

    Attributes:
        asked: what it was made for, that it may be known again: model, layers, observations, options, target.
        observed: with the ranges that rounds of one tensor share.
        shapes: of all tensors, for one sample.
        macs: multiply-accumulates by node.
        views: what is judged.
        large: the layers that are worth quantizing, and why the others are not.
        offers: formats and ranges to choose from, by activation.
        spelled: the calibrator behind each.
        grids: on which weights and activations are rounded.
        given: scales of weights that came stored.
        few: samples for comparisons that are made often.
        simulation: tries them; None where no layer is left.
        louder: by activation, how many times louder the samples that choose are; None where nobody asks.
        halves: the user's metric on the float model, where somebody has measured it.
    """

    asked: tuple[models.Model, Candidates, Observations, Planning, Target]
    observed: Observations
    shapes: Shapes
    macs: Mapping[str, int]
    views: Views
    large: Candidates
    offers: Mapping[str, Sequence[Use]]
    spelled: Mapping[str, Mapping[Use, str]]
    grids: Grids
    given: Mapping[str, NDArray[np.float32]]
    few: Sequence[Feeds]
    simulation: Simulation | None
    louder: Mapping[str, float] | None = None
    halves: MetricHalves | None = None

    def fits(
        self, model: models.Model, layers: Candidates, observed: Observations, options: Planning, target: Target
    ) -> bool:
        """Whether it is what these would give, whatever SQNR is aimed at."""
        had, has = self.asked, (model, layers, observed)
        same = all(one is other for one, other in zip(had[:3], has, strict=True))
        return same and _aimless(had[3]) == _aimless(options) and had[4].of_its_kind == target.of_its_kind

    @property
    def budget(self) -> int:
        """Runs of the model that the search may spend."""
        options = self.asked[3]
        if not options.reproducible and self.simulation is not None:
            return self._budget_by_clock
        return for_layers(options.effort, options.search_time, sum(self.macs.values()), self.observed.feeds)

    @cached_property
    def _budget_by_clock(self) -> int:
        """Runs that the time pays for on this machine, by one of them behind another that warms up."""
        options, feed = self.asked[3], self.observed.choosing[0]
        if self.simulation is None:
            return 0
        self.simulation.simulator.run(feed, {})
        began = time.perf_counter()
        self.simulation.simulator.run(feed, {})
        spent = max(time.perf_counter() - began, LEAST_RUN)
        return max(1, int(seconds_of(options.effort, options.search_time) / spent))

    @property
    def roomy(self) -> bool:
        """Whether samples that choose were louder than those that calibrate, so that ranges with room are on offer."""
        return any(HEADROOM in text for words in self.spelled.values() for text in words.values())

    def feeds(self, most: int) -> Sequence[Feeds]:
        """The samples that plans are compared on: as many as leave room for `COMPARED` plans, but `most` at most."""
        return self.observed.choosing[: samples_for(self.budget, most)]

    def share(self, groups: Iterable[str]) -> float:
        """Share of the model's multiply-accumulates that the readers of these activations make, 0..1."""
        own = sum(self.macs.get(c.node, 0) for name in groups for c in self.large.by_activation[name])
        return own / max(sum(self.macs.values()), 1)


def samples_for(budget: int, most: int) -> int:
    """How many samples plans are compared on with so many runs to spend: two at least, `most` at most."""
    return max(min(budget // COMPARED, most), min(LEAST_SAMPLES, most))


def _aimless(options: Planning) -> Planning:
    """The same, aiming at nothing."""
    safety = replace(options.safety, target_sqnr_db=0.0)
    return replace(options, safety=safety, min_sqnr=None, at=None, beyond=False)


def prepared(
    model: models.Model,
    layers: Candidates,
    observed: Observations,
    options: Planning,
    target: Target,
    pinned: Pinned | None = None,
    *,
    others: Others | None = None,
    like: Ready | None = None,
) -> Ready:
    """Small layers out, formats and ranges on offer, the session made.

    Args:
        model: as of `make_plan`, like the others.
        layers: candidates.
        observed: with kept feeds.
        options: what is asked for.
        target: what planning must know of the machine.
        pinned: the point of a front that is taken.
        others: who else may have run plans, or may run them; None for nobody.
        like: what was made for other candidates; where it is of the same model, what that showed is not run again.
    """
    asked = (model, layers, observed, options, target)
    same = like is not None and like.asked[0] is model and like.asked[2] is observed
    observed = observed.with_(rounds.pooled(model.graph, layers.found, observed.histograms))
    shapes = (
        like.shapes
        if like is not None and same
        else concrete_shapes(model.graph, observed.kept[0], tensors_for_shapes(model.graph))
    )
    macs = count_macs(model.graph, observed.kept[0], shapes)
    views = find_views(model.graph, observed.choosing[0], options.ignored)
    views = weighed(views) if options.likelihood else views
    served = shapes_of_many(model.graph, observed, options.shapes, list(shapes))
    large = layers.refusing(candidates.small(model.graph, layers.found, served, target))
    usual = shapes_at(model.graph, observed, options.shapes, USUAL, list(shapes))
    large = large.refusing(few_rows.refusals(model.graph, large.found, usual, macs, target, options.safety.min_share))
    large = large.refusing(routers.refusals(model.graph, large.found, macs, options.safety.min_share))
    large = large.refusing(candidates.not_numbers(large.found, observed.histograms))
    lacks = evidence.lacks_of(observed)
    large = large.refusing(_unknown(model.graph, large, lacks, target))
    names = list(large.by_activation)
    louder = like.louder if like is not None and same else None
    if louder is None or not louder.keys() >= {*names}:
        louder = _louder(model, names, observed, options)
    offers, spelled = offered_uses(
        options.formats, options.calibrator, target, large.by_activation, observed.histograms, louder
    )
    if pinned is not None:
        offers, spelled = pinned.offers(large.by_activation, spelled)
    grids = _grids(options, target, large, observed.histograms)
    few = observed.choosing[: safety_net.enough(shapes, offers, 1, FEW)]
    given = given_scales(layers.found, per_channel=options.per_channel)
    simulation = _simulation(model, large, offers, grids, given, observed, views, few, options)
    if simulation is not None:
        share_trials(simulation, others)
    return Ready(asked, observed, shapes, macs, views, large, offers, spelled, grids, given, few, simulation, louder)


def foreseen(layers: Candidates, known: Timed, options: Planning, *, shown: bool = False) -> Foreseen:
    """What `prepared` runs: how loud other samples are, means for bias correction, ranges of weights; and its session.

    Args:
        layers: that may be quantized.
        known: one feed, and how many there are.
        options: what is asked for.
        shown: how loud they are is known.
    """
    louder = Foreseen(counted=known.choosing, sessions=1) if options.calibrator == AUTO and not shown else NOTHING
    means = Foreseen(quantized=known.kept if any(one.op == "Conv" for one in layers.found) else 0, sessions=1)
    few = few_of(layers, known)
    narrowed = Foreseen(quantized=2 * few * (1 + ranges_of(options)) if options.clip_weights else 0, sessions=1)
    return louder + means + narrowed + Foreseen(sessions=1, copies=2)


def few_of(layers: Candidates, known: Timed) -> float:
    """How many samples comparisons are made on that are made often."""
    groups = layers.by_activation
    shapes = {name: (known.seen.histograms[name].count,) for name in groups if name in known.seen.histograms}
    return min(safety_net.enough(shapes, groups, 1, FEW), known.choosing)


def ranges_of(options: Planning) -> int:
    """How many ranges are on offer for an activation."""
    return len(AUTO_RANGES if DType.INT8 in options.formats else FP8_RANGES) if options.calibrator == AUTO else 1


def _louder(
    model: models.Model, names: Sequence[str], observed: Observations, options: Planning
) -> dict[str, float] | None:
    """By tensor, how many times larger its largest |x| was in samples that choose than in those that calibrate."""
    if options.calibrator != AUTO or not observed.held or not names:
        return None
    other, known = {name: observed.reached[name] for name in names if name in observed.reached}, observed.histograms
    left = [name for name in names if name not in other]
    other |= peaks(model, left, observed.held) if left else {}
    return {name: peak / known[name].amax for name, peak in other.items() if known[name].amax > 0}


def _unknown(graph: gs.Graph, layers: Candidates, lacks: Mapping[str, Lack], target: Target) -> list[Refusal]:
    """The layers that need a range of what the data has not shown."""
    reads = evidence.refusals(layers.found, lacks)
    done = {one.node for one in reads}
    if not target.quantize_outputs:
        return list(reads)
    writes = outputs.written(graph, [one for one in layers.found if one.node not in done])
    more = [(one, name) for one, name in writes if name in lacks]
    return [
        *reads,
        *(
            Refusal(
                one.node,
                one.op,
                lacks[name].rule,
                f"what it writes needs a range, and {evidence.why(name, lacks[name])}",
            )
            for one, name in more
        ),
    ]


def _grids(options: Planning, target: Target, layers: Candidates, histograms: Mapping[str, Histogram]) -> Grids:
    """The grids that a target has for what was asked for."""
    shifted = [name for name, members in layers.by_activation.items() if members[0].shifted and name in histograms]
    spans = outputs.spans({name: histograms[name] for name in shifted}) if shifted else None
    if target.unsigned_activations:
        spans = outputs.spans(histograms)
    return Grids(options.per_channel, options.per_channel and target.fp8_per_channel, spans)


def _simulation(
    model: models.Model,
    layers: Candidates,
    offers: Mapping[str, Sequence[Use]],
    grids: Grids,
    scales: Mapping[str, NDArray[np.float32]],
    observed: Observations,
    views: Views,
    few: Sequence[Feeds],
    options: Planning,
) -> Simulation | None:
    """What the layers may become, with the weight ranges that serve the outputs best; None where there are none."""
    if not layers.found:
        return None
    simulation = Simulation.of(model, layers.by_activation, offers, observed.kept, grids, scales, views)
    if options.clip_weights and grids.per_channel and DType.INT8 in formats_of(offers):
        return weight_ranges.narrowed(simulation, few)
    return simulation
