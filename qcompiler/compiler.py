"""`compile()`: the life of a model as one readable function, and the commands that are parts of it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qcompiler import calibrators, decide, manifest, outputs, ranges, shapes
from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.atomic import check_writable, unwritable
from qcompiler.choose import AUTO, Chosen, choose
from qcompiler.data import Data, Inputs, Source, open_source
from qcompiler.engines import Engine, EngineFile, Profile, for_target
from qcompiler.equivalence import Gate
from qcompiler.errors import AccuracyError, EngineError, UsageError
from qcompiler.observe import Observations, observe
from qcompiler.pass_ import Pass, Pipeline, Report
from qcompiler.passes.high_precision import HighPrecision
from qcompiler.passes.legalize import Legalize
from qcompiler.passes.name_everything import NameEverything
from qcompiler.passes.normalize_constants import NormalizeConstants
from qcompiler.plan import Decision, Plan
from qcompiler.presets import clean_up, lowering
from qcompiler.progress import Progress, silent
from qcompiler.recipe import Recipe
from qcompiler.sensitivity import SafetyNet
from qcompiler.target import DType, Target
from qcompiler.verification import Verification, gate
from qcompiler.verification import verify as compare

if TYPE_CHECKING:
    from qcompiler.engines.audit import Audit

KEPT_FEEDS = 16  # samples that outlive the data run, for the safety net, the ranges and the comparison
RANGE_FEEDS = 4
STEP_DB = 3.0  # how much closer to float the next try aims where a gate was missed
MOST_DB = 60.0
READY = ("int8", "fp16", "bf16")


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

    model: models.Model
    plan: Plan
    manifest: Mapping[str, Any]
    verification: Verification | None
    engine_path: Path | None
    qdq_path: Path
    manifest_path: Path
    report_path: Path


@dataclass
class _Run:
    """What accumulates while a model is compiled."""

    recipe: Recipe
    target: Target
    progress: Progress
    timings: dict[str, float] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    equivalence: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Times a stage and shows it; yields the function that advances it."""
        started = time.perf_counter()
        with self.progress.stage(name, total) as shown:
            yield shown.advance
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.warn(text)


def compile(
    source: str | Path | models.Model,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
) -> CompileResult:
    """Compiles a float model to an engine and proves that it still works.

    Args:
        source: an ONNX file, or a loaded model.
        data: calibration data (see `qcompiler.data`); needed wherever a type needs ranges.
        recipe: what is asked for; the defaults if None.
        output: the engine file; the other artefacts get its name with other endings.
        progress: where stages are shown.

    Raises:
        UsageError: options that do not go together, an output that cannot be written.
        ModelError: the model cannot be read or used.
        DataError: the data does not fit.
        AccuracyError: a gate of the recipe was missed; nothing is written.
        EngineError: the target refuses the model, or (strict) does not keep the plan's promises.
    """
    return _compile(source, data, recipe or Recipe(), Path(output), progress or silent, build=True)


def quantize(
    source: str | Path | models.Model,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
) -> CompileResult:
    """As `compile`, but stops before the engine; `output` is the quantized ONNX file."""
    return _compile(source, data, recipe or Recipe(), Path(output), progress or silent, build=False)


def _compile(
    source: str | Path | models.Model,
    data: Data | None,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    *,
    build: bool,
) -> CompileResult:
    run = _Run(recipe, recipe.resolve(), progress)
    paths = Paths.of(output, build=build)
    _refuse_early(run, data, paths)
    with run.stage("load"):
        model = source if isinstance(source, models.Model) else models.load(source)
        _refuse_overwriting(model, paths)
        models.check_finite(model)
        inputs = _inputs(model)
        samples = None if data is None else open_source(data, inputs, samples=recipe.samples, batch=recipe.batch)
    normal = _normalise(run, model, samples)
    engine = for_target(run.target) if build else None
    if engine is not None:
        _preflight(run, engine, normal)
    found, refused = _candidates(run, normal)
    watched = [candidate.activation for candidate in found]
    if run.target.quantize_outputs:
        watched += outputs.tensors(normal.graph, found)
    observed = _observe(run, normal, samples, inputs, watched)
    while True:
        chosen = _choose(run, normal, found, refused, observed)
        lowered = _lower(run, normal, chosen, observed)
        verification = _verify(run, model, normal, lowered, samples, observed, inputs, drift=build)
        stricter = _stricter(run.recipe, verification, chosen)
        if stricter is None:
            break
        run.recipe = stricter
    if verification is not None:
        gate(verification, recipe)
    with _workshop(paths) as shop:
        with run.stage("write"):
            written = models.save(lowered, shop / paths.qdq.name)
        built, audited = None, None
        if engine is not None:
            built = _build(run, engine, shop / paths.qdq.name, shop / output.name, _profiles(run, observed, inputs))
            audited = _audit(run, shop / output.name, shop / paths.qdq.name, chosen.plan)
        record = manifest.build(
            source=manifest.File.of(model.source) if model.source else None,
            recipe=recipe,
            data=None if samples is None else _described(samples, observed),
            random_data=samples is not None and samples.random,
            passes=run.reports,
            equivalence=run.equivalence,
            plan=chosen.plan,
            safety=chosen.net,
            verification=verification,
            engine=built,
            profiles=[profile.to_json() for profile in _profiles(run, observed, inputs)],
            audit=audited,
            files={"qdq": manifest.File.of(written[0])},
            timings=run.timings,
            warnings=run.warnings,
        )
        _finish(shop, paths, record)
    return CompileResult(
        lowered,
        chosen.plan,
        record,
        verification,
        output if build else None,
        paths.qdq,
        paths.manifest,
        paths.report,
    )


@dataclass(frozen=True)
class Paths:
    """The artefacts of one compilation: one folder, one stem."""

    engine: Path | None
    qdq: Path
    manifest: Path
    report: Path

    @staticmethod
    def of(output: Path, *, build: bool) -> Paths:
        """From `-o`: `DIR/model.engine`, or `DIR/model.qdq.onnx` where nothing is built."""
        stem = output.name.removesuffix(".onnx").removesuffix(".qdq") if not build else output.stem
        folder = output.parent
        return Paths(
            output if build else None,
            folder / f"{stem}.qdq.onnx" if build else output,
            folder / f"{stem}.manifest.json",
            folder / f"{stem}.report.html",
        )


def _refuse_early(run: _Run, data: Data | None, paths: Paths) -> None:
    """What can be known to fail before anything is read."""
    recipe = run.recipe
    if recipe.precision not in READY:
        raise UsageError(
            f"precision '{recipe.precision}' is not in this release, which has {', '.join(READY)}: choose one of these"
        )
    if recipe.precision in ("fp16", "bf16") and recipe.high_precision not in (None, recipe.precision):
        raise UsageError(
            f"precision '{recipe.precision}' and --high-precision {recipe.high_precision} contradict each other: "
            "leave --high-precision out"
        )
    if recipe.precision in ("fp16", "bf16"):
        run.target = dataclasses.replace(run.target, high_precision=DType(recipe.precision))
    if data is None and (recipe.precision == "int8" or run.target.high_precision is DType.FP16):
        raise UsageError(
            f"precision '{recipe.precision}' needs the ranges of activations: give --data with real samples "
            "(an .npz, a folder of .npz, or file.py:function), or --data random for a smoke test of the tools"
        )
    if recipe.calibrator != AUTO:
        calibrators.parse(recipe.calibrator)
    for path in (paths.engine, paths.qdq, paths.manifest, paths.report):
        if path is not None:
            check_writable(path)


def _refuse_overwriting(model: models.Model, paths: Paths) -> None:
    """No artefact may take the place of the model or of its external data."""
    sources = {path.resolve() for path in (model.source, *model.files) if path is not None}
    for path in (paths.engine, paths.qdq, paths.manifest, paths.report):
        if path is not None and path.resolve() in sources:
            raise UsageError(f"output '{path}' is the model itself or its data: choose another name for the output")


def _inputs(model: models.Model) -> Inputs:
    """dtype and shape of each graph input."""
    return {tensor.name: (graphs.dtype_of(tensor), graphs.shape_of(tensor)) for tensor in model.graph.inputs}


def _normalise(run: _Run, original: models.Model, samples: Source | None) -> models.Model:
    """The float passes, each one behind the equivalence gate where there is data to run."""
    model = models.copy(original)
    pipeline = clean_up(run.target)
    with run.stage("clean up", len(pipeline.passes)) as advance:
        equal = Gate(original, list(islice(samples, 1))) if samples is not None else None

        def after(one: Pass, report: Report) -> None:
            error = equal.check(one, report, model) if equal is not None else None
            if error is not None:
                run.equivalence[report.name] = error
            advance(1)

        run.reports.extend(pipeline(model.graph, after))
        shapes.infer(model)
    return model


def _preflight(run: _Run, engine: Engine, model: models.Model) -> None:
    """Lets the target's real parser read the float graph before anything long is started."""
    with run.stage("pre-flight"), TemporaryDirectory(prefix="qcompiler-") as folder:
        path = Path(folder) / "preflight.onnx"
        models.save(model, path)
        found = engine.check(path)
    if found:
        listed = "; ".join(str(one) for one in found[:3])
        raise EngineError(
            f"{run.target.engine} refuses {len(found)} place(s) of this model: {listed}. Replace or remove the named "
            "operators before compiling, or choose '--target onnxruntime'."
        )


def _candidates(run: _Run, model: models.Model) -> tuple[list[decide.Candidate], list[decide.Refusal]]:
    if run.recipe.precision != "int8":
        return [], []
    return decide.candidates(model.graph, run.target, run.recipe.keep)


def _described(samples: Source, observed: Observations) -> dict[str, Any]:
    return {"name": samples.name, "feeds": observed.feeds, "fingerprint": str(observed.fingerprint)}


def _observe(
    run: _Run, model: models.Model, samples: Source | None, inputs: Inputs, tensors: Sequence[str]
) -> Observations:
    if samples is None:
        return Observations()
    with run.stage("observe", run.recipe.samples) as advance:
        return observe(
            model, tensors, samples, inputs=inputs, keep=KEPT_FEEDS, workers=run.recipe.workers, advance=advance
        )


def _choose(
    run: _Run,
    model: models.Model,
    found: Sequence[decide.Candidate],
    refused: Sequence[decide.Refusal],
    observed: Observations,
) -> Chosen:
    if not observed.kept:
        return Chosen(Plan(), SafetyNet())
    with run.stage("decide") as advance:
        return choose(model, found, refused, observed, run.recipe, run.target, advance)


def _lower(run: _Run, normal: models.Model, chosen: Chosen, observed: Observations) -> models.Model:
    """The plan's graph in the target's types; adds the decisions of the typing to the plan."""
    model = models.copy(normal)
    with run.stage("lower"):
        feeds = observed.kept[:RANGE_FEEDS]
        wide = run.target.high_precision is DType.FP32
        seen = ranges.Ranges() if wide or not feeds else ranges.measure(normal, feeds)
        pipeline = lowering(chosen.plan, run.target, seen, chosen.corrections)
        run.reports = [one for one in run.reports if one.name not in {str(p) for p in pipeline.passes}]
        run.reports.extend(pipeline(model.graph))
        for one in pipeline.passes:
            if isinstance(one, HighPrecision):
                _add_typing(chosen.plan, one.decisions)
    return model


def _add_typing(plan: Plan, decisions: Sequence[Decision]) -> None:
    """Joins what the typing pass decided with the plan: quantized nodes stay, the others learn their float type."""
    for one in decisions:
        known = plan.decisions.get(one.node)
        if known is None:
            plan.add(one)
        elif not known.precision.quantized and known.precision is not one.precision:
            plan.add(dataclasses.replace(known, precision=one.precision, why=f"{known.why}; {one.why}"))


def _verify(
    run: _Run,
    model: models.Model,
    normal: models.Model,
    lowered: models.Model,
    samples: Source | None,
    observed: Observations,
    inputs: Inputs,
    *,
    drift: bool,
) -> Verification | None:
    recipe = run.recipe
    if samples is None or not recipe.verify_samples:
        return None
    held = open_source(recipe.verify_data, inputs) if recipe.verify_data else None
    feeds = held if held is not None else observed.kept[: recipe.verify_samples]
    with run.stage("verify", recipe.verify_samples) as advance:
        found = compare(
            model,
            lowered,
            feeds,
            samples=recipe.verify_samples,
            metric=recipe.metric,
            drift=drift,
            inner=normal,
            advance=lambda: advance(1),
        )
    if held is None:
        found = dataclasses.replace(found, data=f"{samples.name} (calibration data)", random=samples.random)
    return found


def _stricter(recipe: Recipe, verification: Verification | None, chosen: Chosen) -> Recipe | None:
    """The recipe to try next where a gate was missed and more layers can still be given back; None to go on."""
    if verification is None or not chosen.plan.quantized() or not chosen.plan.quantizers:
        return None
    try:
        gate(verification, recipe)
    except AccuracyError:
        target = max(recipe.safety.target_sqnr_db, chosen.net.curve[-1].sqnr_db) + STEP_DB
        if target > MOST_DB:
            return None
        return recipe.replace(safety=dataclasses.replace(recipe.safety, target_sqnr_db=target, min_share=0.0))
    return None


def _profiles(run: _Run, observed: Observations, inputs: Inputs) -> list[Profile]:
    """One profile: the user's shapes, else what the data showed."""
    if run.recipe.shapes is not None:
        return [Profile(run.recipe.shapes)]
    seen = observed.shapes.profiles(inputs) if observed.feeds else {}
    return [Profile({name: (three.min, three.opt, three.max) for name, three in seen.items()})] if seen else []


def _build(run: _Run, engine: Engine, model: Path, output: Path, profiles: Sequence[Profile]) -> EngineFile:
    done = 0.0
    with run.stage("build", 1.0) as advance:

        def show(_: str, share: float) -> None:
            nonlocal done
            advance(max(share - done, 0.0))
            done = max(share, done)

        built = engine.build(model, output, profiles, progress=show)
    for text in built.warnings:
        run.warn(f"{engine.name}: {text}")
    return built


def _audit(run: _Run, engine: Path, model: Path, plan: Plan) -> Audit | None:
    """Holds the engine's own listing against the plan; only TensorRT-RTX writes one."""
    if run.target.engine != "tensorrt-rtx":
        return None
    from qcompiler.engines.audit import audit

    with run.stage("audit"):
        found = audit(engine, model, {decision.node: decision.precision for decision in plan})
    for finding in found.mismatches:
        run.warn(f"fusion audit: {finding.kind}: {finding.node}: {finding.text}")
    if found.mismatches and run.recipe.strict:
        raise EngineError(
            f"the engine does not keep {len(found.mismatches)} promise(s) of the plan: {found.mismatches[0].text} "
            "Keep the named nodes in high precision with --keep, or build without --strict to get a warning instead."
        )
    return found


@contextmanager
def _workshop(paths: Paths) -> Iterator[Path]:
    """A folder beside the outputs in which they are made; whatever fails, it is gone and they are untouched."""
    with TemporaryDirectory(prefix=".qcompiler-", dir=paths.qdq.parent) as folder:
        yield Path(folder)


def _finish(shop: Path, paths: Paths, record: Mapping[str, Any]) -> None:
    """Writes manifest and report, then gives every artefact its place."""
    from qcompiler.report import html

    try:
        (shop / paths.manifest.name).write_text(manifest.to_text(record), encoding="utf8")
        (shop / paths.report.name).write_text(html.render(record), encoding="utf8")
        for made in sorted(shop.iterdir()):
            os.replace(made, paths.qdq.parent / made.name)
    except OSError as error:
        raise unwritable(paths.qdq, error) from error


def build(
    model: str | Path,
    *,
    output: str | Path,
    data: Data | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Builds an engine from an ONNX file that is quantized already (or float: nothing is quantized here).

    Args:
        model: the file; it is checked by the target's rules and parser first.
        output: the engine file.
        data: only its shapes are used, for the optimization profile, where the recipe has none.
        recipe: target, shapes, strict.
        progress: where stages are shown.

    Raises:
        ModelError: the file cannot be read.
        EngineError: the target refuses it.
        UsageError: the output cannot be written, or a dynamic input has no profile.
    """
    run = _Run(recipe or Recipe(), (recipe or Recipe()).resolve(), progress or silent)
    paths = Paths.of(Path(output), build=True)
    for path in (Path(output), paths.manifest, paths.report):
        check_writable(path)
    engine = for_target(run.target)
    with run.stage("load"):
        loaded = models.load(model)
        _refuse_overwriting(loaded, dataclasses.replace(paths, qdq=paths.manifest))
        inputs = _inputs(loaded)
        observed = Observations()
        if data is not None:
            for feeds in open_source(data, inputs, samples=run.recipe.samples):
                observed.shapes.watch(feeds)
                observed.feeds += 1
    with run.stage("legalize"):
        legal = models.copy(loaded)
        run.reports.extend(Pipeline(NameEverything(), NormalizeConstants(), Legalize(run.target))(legal.graph))
    plan = decide.existing(legal.graph)
    with _workshop(paths) as shop:
        models.save(legal, shop / paths.qdq.name)
        profiles = _profiles(run, observed, inputs)
        built = _build(run, engine, shop / paths.qdq.name, shop / Path(output).name, profiles)
        audited = _audit(run, shop / Path(output).name, shop / paths.qdq.name, plan)
        (shop / paths.qdq.name).unlink()
        (shop / paths.qdq.name).with_suffix(".data").unlink(missing_ok=True)
        record = manifest.build(
            source=manifest.File.of(model),
            recipe=run.recipe,
            passes=run.reports,
            plan=plan,
            engine=built,
            profiles=[profile.to_json() for profile in profiles],
            audit=audited,
            timings=run.timings,
            warnings=run.warnings,
        )
        _finish(shop, paths, record)
    return CompileResult(legal, plan, record, None, Path(output), Path(model), paths.manifest, paths.report)


def verify(
    float_model: str | Path | models.Model,
    quantized: str | Path | models.Model,
    *,
    data: Data,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compares two models, or a model and an engine, on `recipe.verify_samples` samples of `data`.

    Raises:
        EngineError: `quantized` is an engine and there is no hardware here to run it.
        DataError: the data does not fit.
    """
    asked = recipe or Recipe()
    reference = float_model if isinstance(float_model, models.Model) else models.load(float_model)
    source = open_source(data, _inputs(reference), samples=asked.samples)
    with (progress or silent).stage("verify", asked.verify_samples) as stage:
        done: Callable[[], None] = lambda: stage.advance(1)  # noqa: E731
        if isinstance(quantized, models.Model) or Path(quantized).suffix == ".onnx":
            return compare(
                reference, quantized, source, samples=asked.verify_samples, metric=asked.metric, advance=done
            )
        with for_target(asked.resolve()).open(quantized) as runner:
            return compare(
                reference, runner.infer, source, samples=asked.verify_samples, metric=asked.metric, advance=done
            )
