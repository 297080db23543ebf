"""The stages that predict how long the engine takes beside high precision, and look for a plan that is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.pricing import Pricing
from qcompiler.compiler.serving import BuildOptions
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.engines.prediction import SPELLED, Prediction, predicted_for
from qcompiler.engines.rates import Gpu
from qcompiler.engines.roofline import Roofline
from qcompiler.errors import DataError, EngineError
from qcompiler.planning.changes import changeable
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.costly import Descent, Faster, all_high
from qcompiler.support.foreseen import Foreseen


@dataclass(frozen=True)
class PredictOptions:
    """What is built to be read.

    Attributes:
        build: what the engine must serve.
        io_types: as of `LowerOptions`.
        least: share of the multiply-accumulates that must stay quantized, 0..1.
    """

    build: BuildOptions
    io_types: str = "keep"
    least: float = 0.0


@stage(kept=False)
def predict(
    run: Compilation,
    subject: Subject,
    decided: Planned,
    lowered: Lowered,
    engine: Path,
    options: PredictOptions,
    *,
    high: Roofline | None = None,
    tried: Sequence[Mapping[str, Any]] = (),
    last: bool = True,
) -> Done[Prediction | None]:
    """The predicted times; None for engines without a listing, or where nothing can be read.

    Args:
        run: shows the work.
        subject: observed.
        decided: the plan.
        lowered: its graph.
        engine: what was built of it.
        options: what is built to be read.
        high: what high precision takes, where that is known already.
        tried: plans that were looked at because they are predicted faster, for the record.
        last: the engine is what is written: that it is slower is told.
    """
    target = options.build.target
    if target.engine != "tensorrt-rtx":
        return Done(None, {"prediction": None})
    with run.working():
        pricing = Pricing(subject, decided, lowered, options.build, options.io_types, engine.parent)
        try:
            own = pricing.of_engine(engine)
            if high is None:
                high = pricing.high if lowered.plan.quantized() else own
            gpus = predicted_for(target, own)
            decode = _decode(pricing, gpus) if last and len(pricing.profiles) > 1 else None
        except (EngineError, DataError) as error:
            return _unknown(run, f"{error}", last)
    found = Prediction(target.high_precision, high, own, gpus, pricing.usual, max(len(pricing.profiles), 1), decode)
    if not own.launches or not high.launches or not found.gpus:
        why = "the engine has no listing that can be read" if found.gpus else "there are no rates for these GPUs"
        return _unknown(run, why, last)
    if last and found.warning:
        run.warn(found.warning)
    if found.decode is not None and found.decode.warning:
        run.warn(f"in the decode, {found.decode.warning}")
    return Done(found, {"prediction": {**found.to_json(), "tried": list(tried)}})


def _decode(pricing: Pricing, gpus: Sequence[Gpu]) -> Prediction | None:
    """What the second profile takes, in which a decoder adds a token; None where it cannot be read."""
    own = pricing.of(pricing.lowered.model, profile=1)
    high = pricing.high_in(1) if pricing.lowered.plan.quantized() else own
    if not own.launches or not high.launches:
        return None
    return Prediction(pricing.options.target.high_precision, high, own, gpus, pricing.usual_in(1))


def _unknown(run: Compilation, why: str, last: bool) -> Done[Prediction | None]:
    text = f"how long the engine takes beside high precision is not predicted: {why}"
    if last:
        run.warn(text)
    return Done(None, {"prediction": {"sms": {}, "leaves_out": "everything", "warning": text, "tried": []}})


@stage(kept=False)
def replan(
    run: Compilation,
    subject: Subject,
    decided: Planned,
    lowered: Lowered,
    options: PredictOptions,
    now: Prediction,
    folder: Path,
    *,
    few: bool = False,
) -> Done[tuple[Faster, ...]]:
    """Plans that are predicted faster than the one that stands, the fastest first; the last resort is high precision.

    Args:
        run: shows the work.
        subject: observed.
        decided: the plan that stands.
        lowered: its graph.
        options: what is built to be read.
        now: what is predicted for it.
        folder: where files are made, which are removed again.
        few: one scale for each weight has cost too much accuracy: only plans with fewer of them.
    """
    chosen, target = decided.chosen, options.build.target
    ours = changeable(chosen, subject.layers)
    if decided.splits.decided or not ours:
        return Done(())
    pricing = Pricing(subject, decided, lowered, options.build, options.io_types, folder)

    def price(other: Chosen) -> Prediction:
        taken = pricing.of(pricing.lowered_by(other))
        return Prediction(target.high_precision, now.high, taken, now.gpus, now.shapes, now.profiles)

    graph, high = decided.model.graph, target.high_precision
    with run.working():
        descent = Descent(chosen, graph, ours, high, now, price, options.least)
        if few:
            return Done(tuple(one for one in descent.with_few_scales() if one.single))
        found = descent.found()
    quantized = {one.node for one in chosen.plan.quantized()}
    if now.slower and quantized <= ours and not options.least:
        nothing = Prediction(high, now.high, now.high, now.gpus, now.shapes, now.profiles)
        floats = all_high(chosen, graph, quantized, high, now)
        found.append(Faster(floats, nothing, frozenset(), frozenset(quantized)))
    return Done(tuple(found))


def told(one: Faster, *, kept: bool, why: str = "") -> dict[str, Any]:
    """A plan that was looked at, for the record."""
    return {
        "single": sorted(one.single),
        "high": sorted(one.floats),
        "share": one.chosen.plan.share(),
        "sms": one.prediction.to_json()["sms"],
        "kept": kept,
        "why": why,
    }


def nothing_left(one: Faster) -> str | None:
    """Why nothing is quantized, where that is so because nothing is faster quantized; else None."""
    if one.chosen.plan.quantized():
        return None
    spelled = SPELLED[one.prediction.dtype]
    return (
        f"everything is in {spelled}: --objective time asks for the least predicted time, and no part of this model is "
        "predicted to be faster quantized. --objective share quantizes all that accuracy allows"
    )


def foreseen(preflight: float) -> Foreseen:
    """The model in high precision is built again, which takes as long as the trial build did, in seconds."""
    return Foreseen(seconds=preflight)
