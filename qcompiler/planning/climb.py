"""Where a model stands before any layer goes back to high precision: everything quantized at once, against the goal.

Each rung of the ladder is judged by this, on the samples and views that the safety net will choose by, so that what
meets the goal here needs no search there. The session is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from qcompiler.numerics.sqnr import decibel
from qcompiler.planning.chosen import Planning
from qcompiler.planning.ready import Ready, ranges_of, samples_for
from qcompiler.planning.search.safety_net import SURE_DB, best_start
from qcompiler.planning.simulation.noise import LEAST_SEEN, Measure
from qcompiler.planning.simulation.simulator import Simulation, Use
from qcompiler.recipe.budget import for_layers
from qcompiler.recipe.tables import QfemTable, SafetyTable
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import Foreseen, between
from qcompiler.target import DType

SPIKE = 100.0  # largest token over the median one, from which a layer would hide what is done for the others


@dataclass(frozen=True, slots=True)
class Standing:
    """What everything quantized at once reaches.

    Attributes:
        goal_db: SQNR that is good enough.
        sqnr_db: of the worst view, on the samples that choose.
        calm_db: the same but for the layers whose tokens spike, which stay float here.
        share: of the model's multiply-accumulates that are quantized, 0..1.
        accepted: whether the user's metric accepts it, which has the word then; None where no metric was asked.
        behind: names of the rungs that were kept, in their order; what is marked on layers is gone behind one that
            changes the model, and comes again where it is kept there, too.
        vain: names of those that were tried since the model last changed, and were not kept.
        missed: why the climb goes on although this met the goal; "" where it did not, or nothing has been judged.
    """

    goal_db: float
    sqnr_db: float
    calm_db: float
    share: float
    accepted: bool | None = None
    behind: tuple[str, ...] = ()
    missed: str = ""
    vain: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether nothing more needs to be done."""
        return self.sqnr_db >= self.goal_db if self.accepted is None else self.accepted

    def raised(self, short_db: float, why: str) -> Standing:
        """As if so many dB more had been asked for, so that the climb goes on."""
        return replace(self, goal_db=max(self.goal_db, self.sqnr_db) + short_db, accepted=None, missed=why)

    def kept(self, rung: str, before: Standing | None, *, anew: bool) -> Standing:
        """As what a rung has reached that is kept.

        Args:
            rung: its name.
            before: where the model stood in front of it; None where nobody has looked.
            anew: it has changed the model, so that what was in vain before may not be now.
        """
        was = () if before is None else before.behind
        return replace(self, behind=(*was, rung), vain=() if anew or before is None else before.vain)

    def in_vain(self, rung: str) -> Standing:
        """The same, behind a rung that was not kept."""
        return replace(self, vain=(*self.vain, rung))

    @property
    def missing_db(self) -> float:
        """How much is missing."""
        return max(0.0, self.goal_db - self.sqnr_db)


def goal_of(options: Planning) -> float:
    """SQNR in dB of the worst view that ends the climb.

    A plan that is made again has the goal that it was made for. A gate is the goal, above the number of the safety net
    only where that was set by hand. On a target that rounds what layers write, this is before that.
    """
    if options.replay is not None:
        return options.replay.net.target_db
    ours, asked = options.safety.target_sqnr_db, options.min_sqnr
    if asked is None:
        return ours
    return asked if ours == SafetyTable().target_sqnr_db else max(ours, asked)


def settled(rung: str, options: Planning) -> bool | None:
    """Whether a plan that is made again was made behind this rung; None where there is none, or nobody says."""
    if options.replay is None or options.replay.rungs is None:
        return None
    return rung in options.replay.rungs


def main_format(options: Planning) -> DType:
    """The format that everything is quantized to: INT8 where it is among those that were asked for."""
    return DType.INT8 if DType.INT8 in options.formats else DType.FP8


def spiking(names: Iterable[str], observed: Observations, wanted: QfemTable) -> frozenset[str]:
    """The activations whose readers QFeM will hardly let be quantized; none where all of them are."""
    if wanted.alpha == "off":
        return frozenset()
    least, known = SPIKE if isinstance(wanted.alpha, str) else wanted.alpha, list(names)
    found = frozenset(one for one in known if one in observed.outliers and observed.outliers[one].ratio > least)
    return found if len(found) < len(known) else frozenset()


class Climb:
    """Everything quantized at once, in the ranges of one calibrator or of the best one.

    Args:
        ready: the layers and the session that tries them.
        options: what is asked for.
        accepts: whether the user's metric accepts a plan; None where dB are the goal.
    """

    def __init__(
        self,
        ready: Ready,
        simulation: Simulation,
        options: Planning,
        accepts: Callable[[Mapping[str, Use]], bool] | None = None,
    ) -> None:
        self._accepts = accepts
        self._ready, self._goal, self._dtype = ready, goal_of(options), main_format(options)
        offers = {name: [use for use in uses if use.dtype is self._dtype] for name, uses in ready.offers.items()}
        self._offers = {name: uses for name, uses in offers.items() if uses}
        self._spiking = spiking(self._offers, ready.observed, options.qfem)
        feeds = ready.feeds(options.safety.samples)
        self._measure = Measure(simulation.simulator, feeds, len(feeds), None)

    @property
    def runs(self) -> int:
        """How often the model was run."""
        return self._measure.runs

    @property
    def several(self) -> int:
        """How many calibrators' ranges are on offer for at least one activation, those that agree counted once."""
        return max((len(dict.fromkeys(uses)) for uses in self._offers.values()), default=0)

    def first(self) -> Standing:
        """In the ranges of the first calibrator."""
        return self._standing({name: uses[0] for name, uses in self._offers.items()})

    def best(self) -> Standing:
        """In those of the calibrator that is best for the outputs."""
        return self._standing(best_start(self._measure, self._offers, self._dtype)[0])

    def _standing(self, uses: dict[str, Use]) -> Standing:
        calm = {name: use for name, use in uses.items() if name not in self._spiking}
        return Standing(
            self._goal,
            decibel(self._measure.noise(uses)),
            decibel(self._measure.noise(calm)),
            self._ready.share(uses),
            None if self._accepts is None else self._accepts(uses),
        )


def samples_of(known: Timed, options: Planning) -> float:
    """How many samples plans will be compared on."""
    budget = for_layers(options.effort, options.search_time, known.macs, round(known.calibrate))
    return min(samples_for(budget, options.safety.samples), known.choosing)


def foreseen(known: Timed, options: Planning) -> Foreseen:
    """What a climb runs: the plan of one calibrator at best, else a race of all, beside the float model."""
    samples, others = samples_of(known, options), ranges_of(options) - 1
    least = Foreseen(quantized=2 * samples)
    most = least + Foreseen(quantized=samples + others * min(LEAST_SEEN, samples)) if others else least
    return least if surely_met(known, options) else between(least, most)


def surely_met(known: Timed, options: Planning) -> bool:
    """Whether one sample, with all layers quantized, is so far above the goal that others will not miss it."""
    return known.sqnr_db is not None and known.sqnr_db >= goal_of(options) + SURE_DB


def surely_missed(known: Timed, options: Planning) -> bool:
    """The same the other way round."""
    return known.sqnr_db is not None and known.sqnr_db < goal_of(options) - SURE_DB
