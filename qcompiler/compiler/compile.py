"""`compile()`: the life of a model, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.compiler.artefacts import finish, workshop
from qcompiler.compiler.ask import Asked, ask
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.building import Building, Outcome
from qcompiler.compiler.climbing import changed, climbed_on
from qcompiler.compiler.estimate import check_disk, estimate
from qcompiler.compiler.kept.opened import opened
from qcompiler.compiler.record import manifest
from qcompiler.compiler.refused import told
from qcompiler.compiler.stages.check_data import check_data, check_metric_data
from qcompiler.compiler.stages.clean_up import clean_up
from qcompiler.compiler.stages.conclude import accept, conclude
from qcompiler.compiler.stages.decide import decide, stricter
from qcompiler.compiler.stages.equalize import calibrate, equalize
from qcompiler.compiler.stages.llm_int8 import llm_int8
from qcompiler.compiler.stages.load import load
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.note import Try, note
from qcompiler.compiler.stages.observe import observe
from qcompiler.compiler.stages.preflight import preflight
from qcompiler.compiler.stages.qfep import qfep
from qcompiler.compiler.stages.smooth_quant import smooth_quant
from qcompiler.compiler.stages.verify import check_finite, verify
from qcompiler.compiler.stages.weight_only import fit_weights, shift, weight_only
from qcompiler.compiler.stages.write import ArtefactNames, write
from qcompiler.compiler.workers.opened import at_work
from qcompiler.data.source import Data
from qcompiler.frontends.export import exported
from qcompiler.ir.model import Model
from qcompiler.plan import Plan
from qcompiler.recipe.recipe import Recipe
from qcompiler.report.figures import size
from qcompiler.support.machine import peak_memory_mb
from qcompiler.support.memory import limited
from qcompiler.support.progress import Progress, silent
from qcompiler.verification.compare import Verification
from qcompiler.verification.share import require as require_share


@dataclass(frozen=True)
class CompileResult:
    """What a compilation leaves behind.

    Attributes:
        model: the lowered model.
        plan: every node's precision with its reason.
        manifest: everything about the run, as plain data.
        verification: the comparison with float; None where it was switched off.
        engine_path: the engine; None after `quantize`.
        qdq_path: the quantized ONNX file.
        manifest_path: the manifest file.
        report_path: the HTML report.
    """

    model: Model
    plan: Plan
    manifest: Mapping[str, Any]
    verification: Verification | None
    engine_path: Path | None
    qdq_path: Path
    manifest_path: Path
    report_path: Path


def compile(
    source: Any,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
    cache: str | Path | bool = True,
) -> CompileResult:
    """Compiles a float model to an engine and proves that it still works.

    Args:
        source: an ONNX file, a loaded model, or what `qcompiler.export` takes with its defaults: a folder of a Hugging
            Face model, `file.py:function`, a torch.nn.Module.
        data: calibration data (see `qcompiler.data`); needed wherever a type needs ranges.
        recipe: what is asked for; the defaults if None.
        output: the engine file; the other artefacts get its name with other endings.
        progress: where stages are shown.
        cache: the folder in which results of stages are kept, for a run that is killed and for the next one; True for
            the usual one (`QCOMPILER_CACHE`, else the user's cache folder), False for none.

    Raises:
        UsageError: options that do not go together, an output that cannot be written.
        ModelError: the model cannot be read or used.
        DataError: the data does not fit.
        AccuracyError: a gate of the recipe was missed, or the result is broken. Nothing is written but a manifest and a
            report of what was tried, `NAME.failed.manifest.json` and `NAME.failed.report.html`; the error has the
            manifest, too.
        EngineError: the target refuses the model, or (strict) does not keep the plan's promises.
    """
    asked = ask(recipe or Recipe(), data, Path(output), build=True)
    return _from(source, data, asked, progress or silent, cache)


def quantize(
    source: Any,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
    cache: str | Path | bool = True,
) -> CompileResult:
    """As `compile`, but stops before the engine; `output` is the quantized ONNX file."""
    asked = ask(recipe or Recipe(), data, Path(output), build=False)
    return _from(source, data, asked, progress or silent, cache)


def _from(source: Any, data: Data | None, asked: Asked, progress: Progress, cache: str | Path | bool) -> CompileResult:
    """What is no ONNX file yet becomes one, in a folder that is gone at the end."""
    with (
        limited(asked.max_memory, asked.paths.output.absolute().parent),
        exported(source, asked.paths.output, progress) as (model, made),
    ):
        run = Compilation(progress)
        # What a library of the user's computes, no hash of ours tells.
        run.cache = opened(False if asked.target.plugins else cache, run.warn)
        for text in (*asked.warnings, *(() if made is None else made.notes)):
            run.warn(text)
        with told(run, asked.paths, asked.recipe), at_work(asked.recipe.workers, asked.recipe.ray) as run.workers:
            return life(run, model, data, asked.after_export(None if made is None else made.to_json()))


def life(run: Compilation, source: str | Path | Model, data: Data | None, asked: Asked) -> CompileResult:
    """The life of a model: every stage in its order. A stage sees its arguments and nothing else."""
    build, target, planning = asked.paths.engine is not None, asked.target, asked.planning
    strict, search = asked.recipe.strict, asked.search
    deciding = target if planning.by_cost else search  # what a format costs is another on each GPU
    subject = run(load, source, data, asked.load)
    subject = run(clean_up, subject, target.anywhere, asked.recipe.equalize, strict)
    disk = run(check_disk, subject, asked)
    if build:
        run(preflight, subject, target, asked.paths, asked.build)
    run(estimate, subject, asked, disk)
    subject = run(qfep, subject, asked.qfep, strict)
    subject = run(observe, subject, asked.watch, asked.observe)
    doubts = run(check_data, subject, asked.check_data)
    subject = run(calibrate, subject, search, planning)
    subject = run(equalize, subject, asked.watch, search, planning, asked.recipe.equalize, strict)
    subject = run(smooth_quant, subject, asked.watch, search, planning, asked.smooth_quant, strict)
    subject = run(llm_int8, subject, asked.watch, asked.llm_int8, strict)
    subject = run(fit_weights, subject, search, planning)
    subject = run(shift, subject, search, planning)
    subject = run(weight_only, subject, asked.weight_only, strict)
    decided, lowered, proof = None, None, None
    tries: tuple[Try, ...] = ()
    while True:  # until the gates hold or nothing is left to give back
        decided = run(decide, subject, deciding, planning, decided)
        lowered = run(lower, subject, decided, target, asked.lower, lowered)
        proof = run(verify, subject, lowered, asked.verify, proof)
        tries = run(note, decided, lowered, proof.verification, asked.gates, asked.promise, tries)
        climbed = climbed_on(run, subject, planning, asked, proof.verification)
        anew, subject = changed(subject, climbed), climbed
        if anew:  # other layers: nothing that was measured of these counts
            decided, lowered = None, None
            continue
        again = stricter(subject, planning, decided, proof.verification, asked.gates)
        if again is None:
            break
        subject, planning = again
    run(check_metric_data, subject, proof.verification)
    finite = run(check_finite, subject, lowered, proof.verification)
    judged = (lowered.plan, proof.verification, asked.gates, asked.promise)
    verdict = run(conclude, *judged, finite, decided.chosen.net, doubts, last=not build)
    run(accept, subject, *judged, verdict)
    with workshop(asked.paths) as shop:
        if build:
            first = Outcome(decided, lowered, proof, finite)
            reached, found = Building(run, subject, doubts, asked, shop).built(first)
            lowered, proof = reached.lowered, reached.proof
            require_share(lowered.plan, asked.promise, None if found is None else found.listed)
            reasons = (*doubts, *(() if found is None else found.doubts()))
            run(conclude, *reached.judged(asked), reached.finite, decided.chosen.net, reasons, last=True)
        else:
            run(write, lowered.model, subject.prefix, ArtefactNames.of(asked.paths, shop, asked.shard), subject.behind)
        _tell_memory(run, asked.max_memory)
        record = manifest(run, asked.recipe)
        finish(shop, asked.paths, record)
    return _result(lowered.model, lowered.plan, record, proof.verification, asked)


def _tell_memory(run: Compilation, allowed: int | None) -> None:
    """Warns where more was taken than the user allows."""
    taken = int((peak_memory_mb() or 0.0) * (1 << 20))
    if allowed is not None and taken > allowed:
        run.warn(
            f"the process took {size(taken)} of memory at most, and --max-memory allows {size(allowed)}: Python and "
            "its libraries, the largest layer with what it computes, and what is counted of samples are there in any "
            "case. Shorter samples take less"
        )


def _result(
    model: Model, plan: Plan, record: Mapping[str, Any], verification: Verification | None, asked: Asked
) -> CompileResult:
    paths = asked.paths
    return CompileResult(model, plan, record, verification, paths.engine, paths.qdq, paths.manifest, paths.report)
