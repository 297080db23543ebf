"""What a compilation will take: seconds, memory and disk, said when one feed has been run and nothing long has begun.

    seconds = those of what is done + Σ over stages  runs · seconds of a run + sessions · seconds of a session

How often a stage will run the model is said by a function beside the code that runs it, its `foreseen`; here is only
their list. The clock is that of one feed, on this machine as it was when it was first asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.ask import Asked
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.stages import (
    build_engine,
    decide,
    equalize,
    lower,
    observe,
    predict,
    preflight,
    qfep,
    smooth_quant,
    verify,
    weight_only,
)
from qcompiler.compiler.subject import Subject
from qcompiler.data.deal import Parts
from qcompiler.data.source import Source
from qcompiler.errors import UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.planning.chosen import Planning
from qcompiler.planning.simulation.first_look import first_look
from qcompiler.report.figures import size
from qcompiler.statistics.timed import Timed, timed
from qcompiler.support.foreseen import Foreseen, ScoreWork
from qcompiler.support.machine import available_memory, memory_in_use, peak_memory_mb
from qcompiler.support.memory import room
from qcompiler.support.outlook import rounded
from qcompiler.target import DType
from qcompiler.verification.held_out import runs_of
from qcompiler.verification.metrics.clocked import clocked

INT4 = "int4-weight"
_BYTES: Final[Mapping[DType, int]] = MappingProxyType({DType.FP32: 4, DType.FP16: 2, DType.BF16: 2})
_TOLD = 4096  # bytes of manifest and report about each node


@dataclass(frozen=True)
class Estimate:
    """What is thought of a compilation.

    Attributes:
        seconds: of all of it, what is done already included.
        memory_bytes: largest resident memory.
        disk_bytes: of what is written, and of what stands beside it for a time.
        stages: seconds of each stage to come, in their order.
        runs: how often the model will be run over a sample.
        in_pieces: a few layers are in memory at a time.
    """

    seconds: float
    memory_bytes: int
    disk_bytes: int
    stages: Mapping[str, float]
    runs: int
    in_pieces: bool = False

    def __str__(self) -> str:
        """As the terminal says it."""
        memory = f"{size(self.memory_bytes)} of memory" + " (a few layers at a time)" * self.in_pieces
        return f"about {rounded(self.seconds)}, {memory}, {size(self.disk_bytes)} of disk"


def foreseen(subject: Subject, known: Timed, asked: Asked, preflight_seconds: float) -> dict[str, Foreseen]:
    """What each stage to come will run, in their order. A new stage that runs the model gets its line here.

    Args:
        subject: normal.
        known: one feed of its data, run and counted.
        asked: the options of all stages.
        preflight_seconds: what the build of the float graph took; 0 where nothing is built.
    """
    return {
        "qfep": qfep.foreseen(known, asked.qfep),
        "observe": observe.foreseen(known, asked.watch),
        "calibrate": equalize.foreseen_calibrate(subject, known, asked.planning),
        "equalize": equalize.foreseen_equalize(subject, known, asked.target, asked.planning, asked.recipe.equalize),
        "smooth_quant": smooth_quant.foreseen(subject, known, asked.target, asked.planning, asked.smooth_quant),
        "fit_weights": weight_only.foreseen_fitted(subject, known, asked.target, asked.planning),
        "shift": weight_only.foreseen_shift(subject, known, asked.target, asked.planning),
        "weight_only": weight_only.foreseen(subject, known, asked.weight_only),
        "decide": decide.foreseen(subject, known, asked.planning),
        "lower": lower.foreseen(known, asked.target),
        "verify": verify.foreseen(known, asked.verify),
        "check_finite": verify.foreseen_on_all(known, asked.verify.samples > 0),
        "build_engine": build_engine.foreseen(preflight_seconds),
        "predict": predict.foreseen(preflight_seconds),
    }


@stage(kept=False)
def check_disk(run: Compilation, subject: Subject, asked: Asked) -> Done[int]:
    """Bytes that will be written, which must be there; before anything is.

    Raises:
        UsageError: there is not even room for the smallest result.
    """
    least, most = disk_of(subject, asked)
    folder = _existing(asked.paths)
    free = shutil.disk_usage(folder).free
    if free < least:
        raise UsageError(
            f"the folder '{folder}' has {size(free)} of room, and what is written for this model takes {size(least)} "
            "at least: free some, or choose another output with -o, on a disk that has room."
        )
    if free < most:
        run.warn(
            f"the folder '{folder}' has {size(free)} of room, and what is written for this model may take "
            f"{size(most)}: free some, or choose another output with -o"
        )
    return Done(most)


@stage(kept=False)
def estimate(run: Compilation, subject: Subject, asked: Asked, disk: int) -> Done[Estimate | None]:
    """What the compilation will take; None without data, where nothing is run.

    Args:
        run: shows it.
        subject: normal.
        asked: the options of all stages.
        disk: bytes that will be written.

    Raises:
        DataError: the first feed does not fit the model.
        ModelError: the model cannot be run over it.
        UsageError: the metric fails or returns no number.
    """
    if subject.samples is None or subject.parts is None:
        return Done(None, {"estimate": None})
    with run.working():
        known, peak = _clocked(run, subject, subject.samples, subject.parts, asked)
        known = _scored(run, subject, known, asked)
    work = foreseen(subject, known, asked, run.timings.get(preflight.preflight.name, 0.0))
    stages = {name: known.clock.seconds(one) for name, one in work.items()}
    memory = memory_of(subject.model, work, peak)
    found = Estimate(
        seconds=sum(run.timings.values()) + sum(stages.values()),
        memory_bytes=memory,
        disk_bytes=disk,
        stages=stages,
        runs=round(sum(one.in_all for one in work.values())),
        in_pieces=room().tight,
    )
    left = available_memory()
    if left is not None and memory - memory_in_use() > left:
        run.warn(
            f"compiling this model takes about {size(memory)} of memory, and {size(left + memory_in_use())} are there: "
            "it may be ended for it. Shorter or smaller samples take less, and so does --batch 1"
        )
    run.expect(str(found), stages)
    record = {
        "seconds": round(found.seconds, 1),
        "memory_bytes": found.memory_bytes,
        "disk_bytes": found.disk_bytes,
        "runs": found.runs,
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
    }
    return Done(found, {"estimate": record})


def _clocked(run: Compilation, subject: Subject, samples: Source, parts: Parts, asked: Asked) -> tuple[Timed, int]:
    """What one feed has shown, and bytes that were resident at most by then."""
    points = asked.watch.points(subject.model, subject.layers.found)
    planning = asked.planning
    about = (subject.model, points, samples, parts, subject.axes)
    looked = (subject.layers, planning.formats[:1], planning.per_channel, planning.ignored)

    def clock() -> tuple[Timed, int]:
        known = _looked(subject, timed(*about), planning)
        return known, round((peak_memory_mb() or 0.0) * (1 << 20)) or memory_in_use()

    return run.item("clock", (*about, *looked), clock)


def _looked(subject: Subject, known: Timed, planning: Planning) -> Timed:
    """With what a look at all layers quantized has shown, where activations are quantized."""
    if not planning.formats:
        return known
    look = first_look(
        subject.model,
        subject.layers.by_activation,
        known.seen.histograms,
        known.seen.kept[0],
        dtype=planning.formats[0],
        per_channel=planning.per_channel,
        ignored=planning.ignored,
    )
    return known if look is None else known.looked(look.seconds, look.sqnr_db, look.runs)


def _scored(run: Compilation, subject: Subject, known: Timed, asked: Asked) -> Timed:
    """With what one score of the metric takes; the float model's is lent to who goes by it next.

    A metric that says how often it runs the model is not asked for it.
    """
    metric = subject.judge.metric
    if metric is None or not asked.verify.samples:
        return known
    runs = runs_of(metric) / 2
    if runs:
        return replace(known, scoring=ScoreWork(runs=runs))
    found = clocked(metric, subject.model)
    run.lend(found)
    return replace(known, scoring=found.scoring(known.elements))


def memory_of(model: Model, work: Mapping[str, Foreseen], peak: int) -> int:
    """The largest resident memory: what the run of one feed took, and the weights that stand there once more later.

    Where it is short, so many that they fit.
    """
    until_now = max(peak, memory_in_use())
    if room().tight:
        return max(until_now, room().limit or 0)
    return until_now + round(max((one.copies for one in work.values()), default=0.0) * weight_bytes(model))


def weight_bytes(model: Model) -> int:
    """Bytes of all weights."""
    return sum(one.nbytes for _, one in _weights(model))


def disk_of(subject: Subject, asked: Asked) -> tuple[int, int]:
    """Bytes that are written: at least, and as it usually is.

    The result has the weights of layers in the type that was asked for, other floats in high precision; it stands in
    the ONNX file and once more in the engine. For the preflight the float graph and its engine stand there for a time.
    Where memory is short, weights are put down there, too: a byte of each for what is tried, and for what is lowered.
    """
    low, high = _bytes_stored(asked), _BYTES[asked.target.high_precision]
    layers = {one.weight for one in subject.layers.found}
    least = usual = before = 0.0
    for name, one in _weights(subject.model):
        share = (low if name in layers else high) / 4 if one.dtype.kind == "f" else 1.0
        least += one.nbytes * (min(low, high) / 4 if one.dtype.kind == "f" else 1.0)
        usual += one.nbytes * share
        before += one.nbytes * (1.0 + (high / 4 if one.dtype.kind == "f" else 1.0))
    told = _TOLD * len(subject.model.graph.nodes)
    if room().tight:
        least, usual = least + weight_bytes(subject.model) / 4, usual + weight_bytes(subject.model) / 2
    if asked.paths.engine is None:
        return round(least), round(usual) + told
    engines = 1 + len(asked.target.sms) * asked.recipe.engine_per_sm
    return round(least), round(max((1 + engines) * usual + told, before))


def _bytes_stored(asked: Asked) -> float:
    """Bytes of an element of a layer's weight."""
    if asked.weight_only is not None:
        return 0.5 if asked.weight_only.precision == INT4 else 1.0
    quantized = asked.planning.formats or asked.planning.dynamic
    return 1.0 if quantized else float(_BYTES[asked.target.high_precision])


def _weights(model: Model) -> Iterator[tuple[str, Any]]:
    """All constants with their names, each once, those of nested graphs included."""
    found = {id(one): one for graph in graphs.graphs(model.graph) for one in graphs.tensors(graph)}
    for one in found.values():
        if graphs.is_constant(one):
            yield one.name, one._values


def _existing(paths: Paths) -> Path:
    folder = paths.output.parent
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())
