"""The files of the engine: built, audited, priced; and again with another plan where the first one does not pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qcompiler.compiler.ask import Asked
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.audit import audit, unkept
from qcompiler.compiler.stages.build_engine import build_apart, build_engine
from qcompiler.compiler.stages.conclude import conclude
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.predict import PredictOptions, nothing_left, predict, replan, told
from qcompiler.compiler.stages.verify import Proof, check_finite, verify
from qcompiler.compiler.stages.write import ArtefactNames, write
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.engines.audit import Audit
from qcompiler.engines.prediction import Prediction
from qcompiler.engines.roofline import Roofline
from qcompiler.plan import Plan
from qcompiler.planning.changes import changeable
from qcompiler.planning.unkept import changed
from qcompiler.verification.compare import Verification
from qcompiler.verification.finite_on_all import Finiteness
from qcompiler.verification.gates import Gates
from qcompiler.verification.share import Promise
from qcompiler.verification.verdict import Word


@dataclass(frozen=True, eq=False)
class Outcome:
    """A plan, its graph, and what was shown of it.

    Attributes:
        decided: the plan.
        lowered: its graph.
        proof: the comparison with float.
        finite: what became of all samples; None where nobody looked.
        promised: nothing quantized is a failure where it was asked for; not where nothing is faster so.
    """

    decided: Planned
    lowered: Lowered
    proof: Proof
    finite: Finiteness | None
    promised: bool = True

    @staticmethod
    def by(run: Compilation, subject: Subject, decided: Planned, before: Outcome, asked: Asked) -> Outcome:
        """What becomes of another plan; what an earlier one has shown is not measured again."""
        lowered = run(lower, subject, decided, asked.target, asked.lower, before.lowered)
        proof = run(verify, subject, lowered, asked.verify, before.proof)
        return Outcome(decided, lowered, proof, run(check_finite, subject, lowered, proof.verification))

    def judged(self, asked: Asked) -> tuple[Plan, Verification | None, Gates, Promise]:
        """What a verdict goes by."""
        promise = asked.promise if self.promised else replace(asked.promise, asks=False, something=False)
        return self.lowered.plan, self.proof.verification, asked.gates, promise


@dataclass(frozen=True)
class Building:
    """Makes the files of an engine.

    Attributes:
        run: of the compilation.
        subject: what is compiled.
        doubts: reasons that the data gives.
        asked: what was asked for.
        shop: the folder where files are made.
    """

    run: Compilation
    subject: Subject
    doubts: Sequence[str]
    asked: Asked
    shop: Path

    def built(self, first: Outcome) -> tuple[Outcome, Audit | None]:
        """The files of the engine; with another plan where it does not keep the first one, or another is faster."""
        reached, found = self._kept(first)
        if self.asked.planning.objective != "time":
            self._predicted(reached)
        else:
            reached, found = self._fastest(reached, found)
        self._apart(reached)
        return reached, found

    def _apart(self, one: Outcome) -> None:
        """An engine for each GPU by itself, where that is asked for; of the files that were written last."""
        if not self.asked.recipe.engine_per_sm:
            return
        names, paths, subject = self._engine, self.asked.paths, self.subject
        each = {sm: names.with_name(f"{names.stem}.{sm}{names.suffix}") for sm in self.asked.target.sms}
        about = (one.lowered.model, subject.seen, subject.inputs, self.asked.build)
        self.run(build_apart, self.shop / paths.qdq.name, each, *about)

    def _kept(self, first: Outcome) -> tuple[Outcome, Audit | None]:
        """Once more with another plan where the engine did not keep the first one.

        The second plan stands only if its gates hold, too, and it is not broken; what it does not keep is in the audit.
        """
        decided, layers = first.decided, self.subject.layers
        ours = frozenset[str]() if first.lowered.splits.decided else changeable(decided.chosen, layers)
        written = self._make(first)
        found = self._audited(first, written, ours)
        missed = unkept(found, ours)
        if not missed:
            return first, found
        high = self.asked.target.high_precision
        other = replace(decided, chosen=changed(decided.chosen, decided.model.graph, missed, high))
        second = self._by(other, first)
        if self._holds(second):
            return second, self._audited(second, self._make(second))
        again = self._by(decided, first)  # the records are those of the last run
        return again, self._audited(again, written)

    def _fastest(self, now: Outcome, found: Audit | None) -> tuple[Outcome, Audit | None]:
        """The fastest of the plans that are as good as was asked for."""
        options = self._options()
        prediction = self._predicted(now, last=False)
        if prediction is None:
            self._predicted(now)
            return now, found
        about = (self.subject, now.decided, now.lowered, options, prediction, self.shop)
        others = self.run(replan, *about)
        waiting = list(others)
        tried: list[Mapping[str, Any]] = []
        while waiting:
            one = waiting.pop(0)
            second = self._by(replace(now.decided, chosen=one.chosen), now)
            second = replace(second, promised=bool(one.chosen.plan.quantized()))
            good = self._holds(second) and (not one.single or self._as_good(now, second))
            tried.append(told(one, kept=good, why="" if good else "it is less accurate than what was asked for"))
            if good:
                nothing = nothing_left(one)
                if nothing:
                    self.run.warn(nothing)
                audited = self._audited(second, self._make(second))
                # with nothing quantized it is the engine in high precision itself
                self._predicted(second, prediction.high if one.chosen.plan.quantized() else None, tried)
                return second, audited
            if one.single and not any(other["single"] for other in tried[:-1]):
                fewer = self.run(replan, *about, few=True)
                waiting = sorted((*fewer, *waiting), key=lambda other: other.prediction.ratio)
        if tried:
            now = replace(self._by(now.decided, now), promised=now.promised)  # the records are those of the last run
        self._predicted(now, prediction.high, tried)
        return now, found

    def _predicted(
        self,
        one: Outcome,
        high: Roofline | None = None,
        tried: Sequence[Mapping[str, Any]] = (),
        *,
        last: bool = True,
    ) -> Prediction | None:
        """What its engine, which was built last, takes."""
        about = (self.subject, one.decided, one.lowered, self._engine, self._options())
        return self.run(predict, *about, high=high, tried=tried, last=last)

    def _options(self) -> PredictOptions:
        return PredictOptions(self.asked.build, self.asked.lower.io_types, self.asked.promise.min_share or 0.0)

    @property
    def _engine(self) -> Path:
        return self.shop / self.asked.paths.output.name

    def _by(self, decided: Planned, before: Outcome) -> Outcome:
        return Outcome.by(self.run, self.subject, decided, before, self.asked)

    def _holds(self, one: Outcome) -> bool:
        """Whether its gates hold, and it is not broken."""
        net = one.decided.chosen.net
        verdict = self.run(conclude, *one.judged(self.asked), one.finite, net, self.doubts, last=False)
        return self.asked.gates.hold(one.proof.verification) and verdict.word is not Word.BROKEN

    def _as_good(self, first: Outcome, second: Outcome) -> bool:
        """Whether coarser weights are good enough: by the gates, or without any, by what the search aimed at."""
        gates, ours, theirs = self.asked.gates, second.proof.verification, first.proof.verification
        if gates.min_sqnr is not None or gates.max_drop is not None or ours is None or theirs is None:
            return True
        if ours.worst_sqnr_db is None or theirs.worst_sqnr_db is None:
            return True
        return ours.worst_sqnr_db >= min(theirs.worst_sqnr_db, first.decided.chosen.net.target_db)

    def _make(self, one: Outcome) -> Path:
        """Writes the graph and builds its engine."""
        names, asked = ArtefactNames.of(self.asked.paths, self.shop, self.asked.shard), self.asked
        written = self.run(write, one.lowered.model, self.subject.prefix, names, self.subject.behind)
        subject = self.subject
        self.run(build_engine, written, self._engine, one.lowered.model, subject.seen, subject.inputs, asked.build)
        return written

    def _audited(self, one: Outcome, written: Path, open_to_change: frozenset[str] = frozenset()) -> Audit | None:
        asked, made = self.asked, one.lowered
        about = (self._engine, written, made.plan, made.splits, asked.target)
        return self.run(audit, *about, asked.recipe.strict, open_to_change)
