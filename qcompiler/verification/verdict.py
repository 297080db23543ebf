"""The verdict: what all figures together say of a result.

    holds      the gates hold, or there is none and nothing is suspicious
    doubtful   somebody should look before it is shipped
    broken     nobody would ship it

The user's metric has the word on good enough: where it was measured, dB and agreement alone call nothing doubtful or
broken. So has a gate of dB: who asks for 10 dB and gets 12 has what was asked for.

A layer that computes something else than in the float model is a doubt although the outputs may be close: on these
samples it hardly matters, on others it may.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from qcompiler.errors import AccuracyError
from qcompiler.judge.figures import CHANCES, ViewFigure
from qcompiler.numerics.sqnr import APART_DB
from qcompiler.verification.compare import Verification
from qcompiler.verification.drift import TappedLayer
from qcompiler.verification.gates import Gates

LOSS: Final = 0.01  # of what a result explains or decides: more is not hidden behind a good word
DOUBTFUL_DB: Final = 20.0  # the noise that takes it: a hundredth of the power that varies
BROKEN_DB: Final = 3.0  # noise of half the power
DOUBTFUL_AGREEMENT: Final = 0.95
BROKEN_AGREEMENT: Final = 0.5
REMEDIES: Final = (
    "Keep layers in high precision with --keep (see `qcompiler sensitivity`), choose another precision, judge by a "
    "metric of your own (--metric), or accept it all the same with --allow-broken."
)
SPREAD_DB: Final = 3.0  # twice the noise


class Word(StrEnum):
    """The verdict in a word."""

    HOLDS = "holds"
    DOUBTFUL = "doubtful"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A word with its reasons, the worst first; none where it holds."""

    word: Word = Word.HOLDS
    reasons: tuple[str, ...] = ()

    def doubted(self, reasons: Iterable[str]) -> Judgement:
        """The same with more reasons of doubt."""
        more = tuple(one for one in reasons if one not in self.reasons)
        word = Word.DOUBTFUL if more and self.word is Word.HOLDS else self.word
        return Judgement(word, (*self.reasons, *more))

    def broken(self, reasons: Iterable[str]) -> Judgement:
        """The same with more reasons to call it broken, in front of the others."""
        more = tuple(one for one in reasons if one not in self.reasons)
        return Judgement(Word.BROKEN if more else self.word, (*more, *self.reasons))

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"verdict": str(self.word), "reasons": list(self.reasons)}


def verdict_of(verification: Verification | None, gates: Gates) -> Judgement:
    """What a comparison says.

    Args:
        verification: the comparison; None where there was none, which is a doubt.
        gates: what the user asks for.
    """
    if verification is None:
        return Judgement().doubted(["nothing was compared with the float model"])
    broken = [*verification.failures, *(text for text, is_broken in _views(verification, gates) if is_broken)]
    doubts = [text for text, is_broken in _views(verification, gates) if not is_broken]
    return Judgement().broken(broken).doubted([*doubts, *_layers(verification, gates), *_data(verification)])


def acceptable(verification: Verification, gates: Gates) -> bool:
    """Whether no gate is missed and the result is not broken, or may be.

    Raises:
        UsageError: a threshold was given for something that was not measured.
    """
    broken = verdict_of(verification, gates).word is Word.BROKEN and not gates.allow_broken
    return not broken and gates.hold(verification)


def require(verification: Verification, gates: Gates) -> None:
    """Refuses what misses a gate or is broken.

    Raises:
        AccuracyError: a gate is missed, or the result is broken and may not be.
        UsageError: a threshold was given for something that was not measured.
    """
    gates.require(verification)
    verdict = verdict_of(verification, gates)
    if verdict.word is Word.BROKEN and not gates.allow_broken:
        begins = f" {verification.begins}" if verification.begins else ""
        raise AccuracyError(f"the result is broken: {'; '.join(verdict.reasons)}.{begins} {REMEDIES}")


def _views(verification: Verification, gates: Gates) -> Iterator[tuple[str, bool]]:
    """Reasons that single views give, each with whether it makes the result broken."""
    if verification.score is not None:
        return
    if not any(view.judged and view.sqnr_db is not None for view in verification.views):
        named = ", ".join(f"'{view.name}'" for view in verification.views if view.missing)
        if named:
            yield f"what decides could not be compared: {named} is not among what the result gives", False
        elif verification.views and all(view.agreement is None for view in verification.views):
            yield "nothing of what the model gives could be judged", False
    asked = math.inf if gates.min_sqnr is None else gates.min_sqnr
    for view in verification.views:
        if view.judged and view.least_db is not None and _loses(view, asked):
            yield f"{_named(view)} has {_both(view)}{_decides(view)}", view.least_db < min(BROKEN_DB, asked)
        elif view.agreement is not None and view.agreement < DOUBTFUL_AGREEMENT and view.role == "result":
            how = f"of output '{view.output}' {view.agreement:.1%} agree with the float model"
            yield (f"{how}, behind {view.step}" if view.step else how), view.agreement < BROKEN_AGREEMENT


def _layers(verification: Verification, gates: Gates) -> Iterator[str]:
    """Reasons that single layers give, the worst of each kind with how many there are."""
    strange = sorted((layer for layer in verification.layers if layer.strange), key=lambda layer: layer.own_db)
    endless = [layer for layer in strange if math.isinf(layer.own_db)]
    if endless:
        yield f"layer '{endless[0].node}' ({endless[0].op}) is not finite{_more(endless)}"
    others = [layer for layer in strange if not math.isinf(layer.own_db)]
    if others and verification.score is None and gates.min_sqnr is None:
        yield (
            f"layer '{others[0].node}' ({others[0].op}) computes something else than in the float model: "
            f"{_db(others[0].own_db)} dB on the same inputs{_more(others)}"
        )


def _more(layers: Sequence[TappedLayer]) -> str:
    return f", and {len(layers) - 1} more" if len(layers) > 1 else ""


def _data(verification: Verification) -> Iterator[str]:
    """Reasons that the data gives."""
    if verification.random:
        yield "the data is random noise: the figures say nothing about accuracy"
    elif verification.in_sample:
        yield "all figures are in sample: there are too few samples to keep some apart"


def advice(verification: Verification | None, goal_db: float) -> str:
    """What to do where parts of the data come out differently, and not all of them well; "" where they are alike.

    Args:
        verification: with the figures of other parts; None where nothing was compared.
        goal_db: SQNR that is good enough.
    """
    if verification is None or verification.score is not None:
        return ""
    figures = {"held out": verification.worst_sqnr_db, **verification.parts}
    known = {name: db for name, db in figures.items() if db is not None and math.isfinite(db)}
    if len(known) < 2 or min(known.values()) >= goal_db or max(known.values()) - min(known.values()) <= SPREAD_DB:
        return ""
    told = ", ".join(f"{name} {db:.1f}" for name, db in known.items())
    return (
        f"parts of the data differ (worst view in dB: {told}): give more samples, or others like those that production "
        f"sends{_outstanding(verification)}"
    )


def _outstanding(verification: Verification) -> str:
    view = verification.worst
    if view is None or view.worst_sample is None or view.worst_sample_db is None:
        return ""
    return f"; sample {verification.sample(view.worst_sample)} stands out with {_db(view.worst_sample_db)} dB"


def _loses(view: ViewFigure, asked: float) -> bool:
    """Whether the noise of a view takes more than `LOSS`: of what is read of it, else of what varies.

    What chances lose at most is a bound, and a wide one where there are few: above the line of doubt nobody goes by it.
    """
    least = math.inf if view.least_db is None else view.least_db
    if view.step == CHANCES and least >= DOUBTFUL_DB:
        return False
    read = [loss for loss in (view.lost, view.perplexity) if loss is not None]
    if least < min(BROKEN_DB, asked) or not read:
        return least < min(DOUBTFUL_DB, asked)
    return least < asked and max(read) > LOSS


def _decides(view: ViewFigure) -> str:
    """What the noise does to what is read of a view: the worst where both are told."""
    if view.perplexity is not None and view.perplexity >= (view.lost or 0.0):
        return f", which raises the perplexity by {view.perplexity:.1%}"
    if view.lost is None:
        return ""
    if view.step == CHANCES:
        return f", which may take up to {view.lost:.1%} of right answers, F1 or order"
    return f", which takes {view.lost:.1%} of its right answers"


def _named(view: ViewFigure) -> str:
    return (
        f"'{view.name}'" if view.tensor == view.output else f"'{view.name}', which output '{view.output}' is made of,"
    )


def _both(view: ViewFigure) -> str:
    """The figure that a view is doubted for."""
    if view.sqnr_db is None or view.varying_db is None or view.varying_db >= view.sqnr_db - APART_DB:
        return f"{_db(view.least_db or 0.0)} dB"
    return f"{_db(view.varying_db)} dB of what varies from sample to sample ({_db(view.sqnr_db)} dB of all)"


def _db(value: float) -> str:
    return f"{value:.1f}"
