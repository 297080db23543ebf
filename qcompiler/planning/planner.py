"""From what was observed to the plan: small layers out, formats and ranges on offer, and the safety net over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.calibrators.auto import AUTO
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Views
from qcompiler.numerics import rounding
from qcompiler.plan import Candidate, Plan, Quantizer
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.decisions import plan_of
from qcompiler.planning.placement import attention
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.profile import LARGEST, SMALLEST, USUAL, shapes_at
from qcompiler.planning.ready import ROOM_DB, Ready, prepared
from qcompiler.planning.search import between_layers, cost, evidence, outputs, qfem, safety_net
from qcompiler.planning.search.checks import Halves, Samples
from qcompiler.planning.search.goal import DEFAULT, DEFAULT_DROP, METRIC, SQNR, Goal, GoalReached, checks_for
from qcompiler.planning.search.offers import fitted_weights
from qcompiler.planning.search.qfem import NOTHING, Spared
from qcompiler.planning.search.safety_net import Limits, Prices, SafetyNet
from qcompiler.planning.search.take import Judging, Pinned, by_goal
from qcompiler.planning.simulation.noise import Advance
from qcompiler.planning.simulation.simulator import Grids, Simulation, Use
from qcompiler.recipe.budget import runs_for
from qcompiler.recipe.tables import QfemTable, SafetyTable
from qcompiler.statistics.observe import Observations
from qcompiler.support.each import Others
from qcompiler.target import DType, Target
from qcompiler.verification.metrics.halves import MetricHalves
from qcompiler.verification.verdict import DOUBTFUL_DB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Corrections = dict[str, NDArray[np.float32]]

USELESS_DB = 8.0
LEAST_SHARE = 0.8  # of all multiply-accumulates: what stays quantized where the outputs would be in doubt otherwise


def make_plan(
    model: models.Model,
    layers: Candidates,
    observed: Observations,
    options: Planning,
    target: Target,
    advance: Advance | None = None,
    *,
    metric: Halves | None = None,
    scores: qfem.Scores = qfem.UNKNOWN,
    pinned: Pinned | None = None,
    ready: Ready | None = None,
    others: Others | None = None,
) -> Chosen:
    """Decides every linear node's precision.

    Args:
        model: the float model after the float passes.
        layers: candidates by the structural rules, and what these rules left out.
        observed: histograms of the candidates' activations, and the kept feeds.
        options: calibrator, safety net, gates.
        target: high-precision type.
        advance: called with the number of runs of the safety net.
        metric: makes the user's metric on a float model; its choosing half is the goal then, and QFeM goes by it.
        scores: what it gave for this model before.
        pinned: the point of a front that is taken without a search; None to search.
        ready: what somebody has prepared of the same already; it is made anew where it does not fit.
        others: who else may have run plans, or may run them; None for nobody.

    Raises:
        UsageError: the metric fails, or a point is picked that the front does not have.
    """
    if ready is None or pinned is not None or not ready.fits(model, layers, observed, options, target):
        ready = prepared(model, layers, observed, options, target, pinned, others=others)
    known = ready.halves
    if known is not None:
        metric = partial(_measured, known)
    by_hand = options.safety.target_sqnr_db != SafetyTable().target_sqnr_db
    calm = math.inf if ready.roomy else options.safety.target_sqnr_db + ROOM_DB  # what others exceed is not enough
    if target.quantize_outputs:
        options = replace(options, safety=outputs.relaxed(options.safety))
    observed, macs, large, offers = ready.observed, ready.macs, ready.large, ready.offers
    simulation, views = ready.simulation, ready.views
    costs = _costs(model.graph, layers, large, ready.grids, observed, options, target)
    weights = _sizes(model.graph, large.by_activation, target)
    prices = _priced(large.by_activation, offers, macs, costs)
    prices = replace(prices, weights=weights, by_size=options.objective == "size")
    ratios = {name: one.ratio for name, one in observed.outliers.items()}
    table = _affordable(options, prices)
    feeds = ready.feeds(options.safety.samples)
    limits = _limits(options, prices, by_hand=by_hand, judged=metric is not None)
    runs = ready.budget
    if options.reproducible:  # what the clock says is not exceeded
        runs = runs_for(runs, options.effort, options.search_time, choices_of(offers))
    limits = replace(limits, runs=runs, few=few_for(runs, offers, len(feeds)), calm_db=calm)
    reached: GoalReached | None = None
    if pinned is not None:
        spared, net, reached = pinned.spared, pinned.net, pinned.reached
    elif simulation is None:
        spared, net = NOTHING, SafetyNet()
    else:
        search = _Search(simulation, prices, limits, options, ready.few, feeds, observed.choosing, advance)
        spared, net, reached, scores = search.found(ratios, table, metric, scores)
    left = large.refusing(qfem.refusals(spared, large.found))
    plan = plan_of(model.graph, left, net, macs, target, observed.histograms, "" if costs is None else costs.where)
    plan = plan.with_(
        quantizers=_quantizers(left.by_activation, net, ready, target),
        axes=_axes(left, net, ready.grids) | qfem.stored(spared, large.by_activation, options.qfem),
    )
    corrections = _corrections(simulation, left, net)
    scales = ready.given if simulation is None else simulation.scales
    plan, corrections = _completed(plan, corrections, model, left, net, scales, observed, views, options, target)
    return Chosen(plan, net, corrections, scales, fitted_weights(left.found), spared, scores, reached)


def _costs(
    graph: gs.Graph,
    layers: Candidates,
    large: Candidates,
    grids: Grids,
    observed: Observations,
    options: Planning,
    target: Target,
) -> cost.Costs | None:
    """What `large` of the layers cost in each format; None where they are not chosen by that."""
    if not options.by_cost or options.objective == "size" or target.engine == "onnxruntime" or not large.found:
        return None
    usual = shapes_at(graph, observed, options.shapes, USUAL, cost.tensors_for_costs(graph, layers.found))
    return cost.Costs(graph, usual, target, per_channel=grids.per_channel, fp8_per_channel=grids.fp8_per_channel)


def _priced(
    groups: Mapping[str, Sequence[Candidate]],
    offers: Mapping[str, Sequence[Use]],
    macs: Mapping[str, int],
    costs: cost.Costs | None,
) -> Prices:
    """What accuracy is traded for: time where costs are compared, else multiply-accumulates in high precision."""
    own = {name: sum(macs.get(c.node, 0) for c in members) for name, members in groups.items()}
    return Prices(own, sum(macs.values()), {} if costs is None else costs.table(groups, offers))


def _sizes(graph: gs.Graph, groups: Mapping[str, Sequence[Candidate]], target: Target) -> dict[str, tuple[int, int]]:
    """Bytes of the weights of each group, quantized and in high precision."""
    tensors, wide = graph.tensors(), 4 if target.high_precision is DType.FP32 else 2
    elements = {
        name: sum(math.prod(tensors[weight].shape) for weight in {one.weight for one in members})
        for name, members in groups.items()
    }
    return {name: (count, count * wide) for name, count in elements.items()}


def _affordable(options: Planning, prices: Prices) -> QfemTable:
    """QFeM's table with no larger budget than a gate on the share leaves it."""
    linear = sum(prices.macs.values())
    left = 1.0 - options.min_share * prices.total / linear if linear else 0.0
    return replace(options.qfem, budget=min(options.qfem.budget, max(left, 0.0)))


def _limits(
    options: Planning,
    prices: Prices,
    *,
    by_hand: bool,
    judged: bool,
) -> Limits:
    """When the search stops.

    Args:
        options: gates and the safety net's table.
        prices: what can be quantized, of all there is.
        by_hand: the recipe sets its own dB for the safety net.
        judged: a metric is the goal.
    """
    table, target_db = options.safety, options.safety.target_sqnr_db
    if options.min_sqnr is not None and not judged:  # the request is the goal: who asks for 10 dB gets it
        target_db = max(target_db, options.min_sqnr) if by_hand else options.min_sqnr
    # A gate that the user set outranks speed, and among formats high precision is a choice like the others
    asked = options.min_sqnr is not None or (judged and options.max_drop is not None)
    free = asked or (bool(prices.seconds) and not options.everything)
    floor = 0.0 if free else table.min_share * sum(prices.macs.values()) / max(prices.total, 1)
    ours = not judged and not by_hand and table.min_share == SafetyTable().min_share
    return Limits(
        target_db=target_db,
        min_share=max(options.min_share, floor),
        useless_db=USELESS_DB,
        high=not options.everything,
        doubtful_db=min(DOUBTFUL_DB, target_db) if ours else -math.inf,
        least_share=max(options.min_share, min(floor, LEAST_SHARE)),
    )


def few_for(budget: int, offers: Mapping[str, Sequence[Use]], samples: int) -> int:
    """How many samples single groups are measured on: half of the budget is theirs."""
    return max(1, min(samples, budget // 2 // max(choices_of(offers), 1)))


def choices_of(offers: Mapping[str, Sequence[Use]]) -> int:
    """How many groups and formats there are to choose from."""
    return sum(len({use.dtype for use in uses}) for uses in offers.values())


def _measured(halves: MetricHalves, run: object) -> MetricHalves:
    """A metric that was measured on the float model already."""
    return halves


def _judge(halves: MetricHalves) -> qfem.Judge:
    """The metric as QFeM asks for it: what its choosing half lets expect of the whole."""
    return lambda run: halves.expected(lambda feeds: run(dict(feeds)))


def _never(uses: Mapping[str, Use], quiet: bool) -> bool:
    """No search ends at its beginning."""
    return False


@dataclass(frozen=True, eq=False)
class _Search:
    """The search for what stays in high precision.

    Attributes:
        simulation: the layers.
        prices: what accuracy is traded for.
        limits: when the safety net stops.
        options: the goal, and what the user picks.
        few: samples for QFeM.
        feeds: samples for the safety net.
        choosing: all samples that choose.
        advance: called with the number of runs.
    """

    simulation: Simulation
    prices: Prices
    limits: Limits
    options: Planning
    few: Sequence[Feeds]
    feeds: Sequence[Feeds]
    choosing: Sequence[Feeds]
    advance: Advance | None

    def found(
        self, ratios: Mapping[str, float], table: QfemTable, metric: Halves | None, scores: qfem.Scores
    ) -> tuple[Spared, SafetyNet, GoalReached | None, qfem.Scores]:
        """QFeM's choice, the net at the point that is taken, how that stands to the goal, and scores for later.

        Args:
            ratios: largest token over median token, by activation.
            table: QFeM's.
            metric: makes the user's metric on a float model.
            scores: what it gave before, by what was spared.
        """
        options, simulator, offers = self.options, self.simulation.simulator, self.simulation.offers
        samples = Samples(simulator, self.choosing, self.advance)
        judging = Judging.of(self._goal(metric), simulator, samples, metric, options.min_sqnr)
        judge: qfem.Judge | None = None
        holds: Callable[[Mapping[str, Use]], bool] | None = None
        if judging.halves is not None:
            halves = judging.halves
            judge, holds = _judge(halves), lambda uses: judging.check(uses).holds
            scores = {**scores, None: halves.expected_of(halves.float_score)}
        spared, scores = qfem.spare(
            self.simulation, self.few, offers, self.prices, ratios, table, self.limits.target_db, judge, scores, holds
        )
        if len(spared.tensors) == len(self.simulation.groups):
            return spared, SafetyNet(), None, scores
        left = {name: uses for name, uses in offers.items() if name not in spared.tensors}
        net = safety_net.find_net(
            simulator,
            self.feeds,
            left,
            self.prices,
            self.limits,
            self.advance,
            accept=_never if options.beyond else judging.accepts,
        )
        most = checks_for(options.effort, options.search_time)
        net, reached = by_goal(net, judging, options.pick, most, beyond=options.beyond)
        return spared, net, reached, scores

    def _goal(self, metric: Halves | None) -> Goal:
        """What is asked of the plan."""
        options, limits = self.options, self.limits
        if metric is not None:
            limit = DEFAULT_DROP if options.max_drop is None else options.max_drop
            return Goal(METRIC, limit, options.objective, limits.min_share)
        kind = DEFAULT if options.min_sqnr is None else SQNR
        lines = (limits.doubtful_db, limits.least_share)
        by_likelihood = any(view.weighed for view in self.simulation.simulator.views)
        return Goal(kind, limits.target_db, options.objective, limits.min_share, *lines, likelihood=by_likelihood)


def _quantizers(
    groups: Mapping[str, Sequence[Candidate]], net: SafetyNet, ready: Ready, target: Target
) -> dict[str, Quantizer]:
    """Those of the activations of all groups that the net did not give back."""
    uses = {name: Use(net.formats[name], net.amax[name]) for name in groups if name not in net.restored}
    spans = {} if target.unsigned_activations or ready.grids.spans is None else ready.grids.spans
    return {
        name: Quantizer(
            name,
            use.dtype,
            use.amax,
            ready.spelled[name][use],
            ready.observed.histograms[name].amax,
            rounding.span(use.amax, spans[name]) if name in spans and use.dtype is DType.INT8 else None,
        )
        for name, use in uses.items()
    }


def _axes(layers: Candidates, net: SafetyNet, grids: Grids) -> dict[str, int | None]:
    """Of the quantized layers, by name: the axis of the weight that has the scales."""
    kept = [c for c in _grouped(layers) if c.activation not in net.restored]
    return {c.node: c.axis if grids.channels(net.formats[c.activation]) else None for c in kept}


def _corrections(simulation: Simulation | None, layers: Candidates, net: SafetyNet) -> Corrections:
    """What bias correction adds to the quantized layers, by name."""
    if simulation is None:
        return {}
    shifts = simulation.shifts
    kept = [c for c in _grouped(layers) if c.activation not in net.restored and shifts.can(c)]
    return {c.node: shifts.of(c, net.amax[c.activation], net.formats[c.activation]) for c in kept}


def _grouped(layers: Candidates) -> list[Candidate]:
    """The candidates, those of one activation together."""
    return [c for members in layers.by_activation.values() for c in members]


def _completed(
    plan: Plan,
    corrections: Corrections,
    model: models.Model,
    layers: Candidates,
    net: SafetyNet,
    scales: Mapping[str, NDArray[np.float32]],
    observed: Observations,
    views: Views,
    options: Planning,
    target: Target,
) -> tuple[Plan, Corrections]:
    """The plan with what stands between layers: quantized outputs, or shortcuts, attentions and shared scales."""
    table = options.safety
    ranges = outputs.RANGES if options.calibrator == AUTO else (options.calibrator,)
    if target.quantize_outputs:
        few = observed.choosing[: table.samples]
        extended = outputs.add(
            plan,
            model,
            observed.histograms,
            corrections,
            few,
            ranges=ranges,
            target_db=table.target_sqnr_db,
            views=views,
            spared=net.restored,
            fitted=fitted_weights(layers.found),
        )
        return extended, corrections
    setting = between_layers.Setting(
        model,
        target,
        layers.by_activation,
        observed.histograms,
        observed.kept,
        observed.choosing[: table.samples],
        views,
        calibrator=ranges[0],
        target_db=table.target_sqnr_db,
        per_channel=options.per_channel,
        attention=_asked(model.graph, observed, options, target),
        scales=scales,
        lacks=evidence.lacks_of(observed),
    )
    return between_layers.extend(plan, corrections, setting)


def _asked(
    graph: gs.Graph, observed: Observations, options: Planning, target: Target
) -> attention.AttentionAsked | None:
    """What is asked of attentions."""
    if options.attention is None:
        return None
    smallest, largest = (
        shapes_at(graph, observed, options.shapes, at, attention.tensors_for_attention(graph))
        for at in (SMALLEST, LARGEST)
    )
    return attention.AttentionAsked(options.attention, smallest, largest, target.high_precision)
