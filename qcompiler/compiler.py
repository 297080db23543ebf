"""`compile()`: the life of a model as one readable function, and the commands that are parts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import (
    decide,
    decoders,
    llm_int8,
    manifest,
    outliers,
    prefixing,
    residual,
    smoothing,
    sparing,
    weight_gates,
    weight_records,
)
from qcompiler import model as models
from qcompiler import text as texts
from qcompiler import weight_only as weights
from qcompiler.artefacts import Paths, finish, refuse_overwriting, workshop
from qcompiler.atomic import check_writable
from qcompiler.data import Data, open_source
from qcompiler.engines import for_target
from qcompiler.export_model import exported
from qcompiler.export_sources import is_exportable
from qcompiler.observe import Observations
from qcompiler.pass_ import Pipeline
from qcompiler.passes.legalize import Legalize
from qcompiler.passes.name_everything import NameEverything
from qcompiler.passes.normalize_constants import NormalizeConstants
from qcompiler.perplexity import chosen_metric
from qcompiler.plan import Plan
from qcompiler.progress import Progress, silent
from qcompiler.recipe import Recipe
from qcompiler.samples import ShapeRange
from qcompiler.signature import inputs_of
from qcompiler.smooth import smooth
from qcompiler.stages import (
    Run,
    audit_engine,
    build_engine,
    choose_plan,
    compare_models,
    described,
    held_out,
    lower,
    normalise,
    observe_data,
    open_stored,
    preflight,
    profiles_of,
    refuse_early,
    runs_of,
    stricter,
    warn_where_nothing_is_quantized,
)
from qcompiler.verification import Verification
from qcompiler.verification import verify as compare

RESIDUAL_FEEDS = 4


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


def compile(
    source: Any,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
) -> CompileResult:
    """Compiles a float model to an engine and proves that it still works.

    Args:
        source: an ONNX file, a loaded model, or what `qcompiler.export` takes with its defaults: a folder of a Hugging
            Face model, `file.py:function`, a torch.nn.Module.
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
    return _exported(source, data, recipe or Recipe(), Path(output), progress or silent, build=True)


def quantize(
    source: Any,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    output: str | Path,
    progress: Progress | None = None,
) -> CompileResult:
    """As `compile`, but stops before the engine; `output` is the quantized ONNX file."""
    return _exported(source, data, recipe or Recipe(), Path(output), progress or silent, build=False)


def _exported(
    source: Any, data: Data | None, recipe: Recipe, output: Path, progress: Progress, *, build: bool
) -> CompileResult:
    """What is no ONNX file yet becomes one, in a folder that is gone at the end."""
    if is_exportable(source):  # which takes long: what is known to fail fails before
        settled = texts.settled(recipe, data)
        refuse_early(Run(settled, settled.resolve(), silent), data, Paths.of(output, build=build))
    with exported(source, output, progress) as (found, made):
        record = None if made is None else made.to_json()
        return _compile(found, data, recipe, output, progress, build=build, export=record)


def _compile(
    source: str | Path | models.Model,
    data: Data | None,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    *,
    build: bool,
    export: Mapping[str, Any] | None = None,
) -> CompileResult:
    recipe = texts.settled(recipe, data)
    run = Run(recipe, recipe.resolve(), progress)
    paths = Paths.of(output, build=build)
    refuse_early(run, data, paths)
    with run.stage("load"):
        model = source if isinstance(source, models.Model) else models.load(source)
        refuse_overwriting(model, data, paths)
        models.check_finite(model)
        inputs = inputs_of(model.graph)
        data = texts.fitted(data, model.graph)
        samples = None if data is None else open_source(data, inputs, samples=recipe.samples, batch=recipe.batch)
        held_out(run, model, data, inputs)
    normal = normalise(run, model, samples)
    engine = for_target(run.target) if build else None
    if engine is not None:
        preflight(run, engine, normal, paths)
    found, refused = run.scope.layers(normal)
    behind = prefixing.stage(run, model, normal, samples, found)
    model, normal, samples, prefixed = behind.reference, behind.model, behind.samples, behind.done
    front = None if prefixed is None else prefixed.front
    if prefixed is not None and prefixed.baked:
        found, refused = run.scope.layers(normal)
    observed = observe_data(run, normal, samples, inputs, run.watch.tensors(normal, found), found)
    seen = outliers.records(observed.outliers, observed.histograms, readers(found))
    streams = residual.measure(normal.graph, observed.kept[:RESIDUAL_FEEDS]) if observed.kept else []
    smoothed = smooth(run, normal, found, observed)
    normal, observed = smoothed.model, smoothed.observed
    if smoothed.groups:
        found, refused = run.scope.layers(normal)
    apart = llm_int8.stage(run, normal, decide.Candidates(found, refused), observed)
    normal, observed, splits = apart.model, apart.observed, apart.splits
    found, refused = apart.layers
    rounded = weights.stage(run, normal, samples, observed)
    normal, stored = open_stored(rounded.model, found), rounded.stored
    layers, scores = decide.Candidates(found, refused), sparing.UNKNOWN
    while True:
        chosen = choose_plan(run, normal, layers, observed, scores)
        scores = chosen.scores
        settled, plan, splits = llm_int8.settle(normal, chosen.plan, splits)
        plan = weight_records.into(plan, stored, run.target, [node.name for node in normal.graph.nodes])
        chosen = dataclasses.replace(chosen, plan=plan)
        lowered, plan = lower(run, settled, chosen, observed, weights.passes(stored))
        chosen = dataclasses.replace(chosen, plan=plan)
        verification = compare_models(run, model, settled, lowered, samples, observed, inputs, drift=build, front=front)
        tighter = stricter(run.recipe, run.gates, verification, chosen)
        if tighter is not None:
            run.recipe = tighter
            continue
        fewer = weight_gates.give_back(stored, verification, run.gates, run.recipe.safety.min_share)
        if fewer is None:
            break
        stored = fewer
    warn_where_nothing_is_quantized(run, chosen.plan)
    if verification is not None:
        weight_gates.require(verification, run.gates, stored)
    with workshop(paths) as shop:
        with run.stage("write"):
            written = models.save(lowered, shop / paths.qdq.name)
            prefix = prefixing.save(prefixed, shop, paths.manifest.name.removesuffix(".manifest.json"))
        built, audited, profiles, decoder = None, None, [], decoders.of_model(lowered)
        if engine is not None:
            profiles = profiles_of(run, observed, inputs, decoder)
            built = build_engine(run, engine, shop / paths.qdq.name, shop / output.name, profiles)
            audited = audit_engine(run, shop / output.name, shop / paths.qdq.name, chosen.plan)
        record = manifest.build(
            source=manifest.File.of(model.source) if model.source else None,
            export=export,
            recipe=recipe,
            data=None if samples is None else described(samples, observed),
            random_data=samples is not None and samples.random,
            passes=run.reports,
            equivalence=run.equivalence,
            plan=chosen.plan,
            safety=chosen.net,
            outliers=seen,
            residuals=[dataclasses.asdict(one) for one in streams],
            smoothing=smoothing.record_of(smoothed.groups, smoothed.tried),
            qfem=sparing.record_of(chosen.spared, seen),
            qfep=prefixing.record_of(prefixed, run.metric, verification, None if prefix is None else prefix.name),
            llm_int8=llm_int8.record_of(splits, chosen.plan, recipe.llm_int8, shop / output.name if audited else None),
            weight_only=weight_records.record_of(stored),
            verification=verification,
            engine=built,
            profiles=[profile.to_json() for profile in profiles],
            cache=decoder and decoder.to_json(),
            audit=audited,
            files={"qdq": manifest.File.of(written[0])} | ({"prefix": manifest.File.of(prefix)} if prefix else {}),
            timings=run.timings,
            warnings=run.warnings,
        )
        finish(shop, paths, record)
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


def readers(found: Sequence[decide.Candidate]) -> dict[str, list[str]]:
    """Names of the candidates that read each activation."""
    return {name: [one.node for one in members] for name, members in decide.by_activation(found).items()}


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
    run = Run(recipe or Recipe(), (recipe or Recipe()).resolve(), progress or silent)
    paths = Paths.of(Path(output), build=True)
    for path in (Path(output), paths.manifest, paths.report):
        check_writable(path)
    engine = for_target(run.target)
    with run.stage("load"):
        loaded = models.load(model)
        refuse_overwriting(loaded, data, dataclasses.replace(paths, qdq=paths.manifest))
        inputs = inputs_of(loaded.graph)
        observed = Observations()
        if data is not None:
            shapes, count = ShapeRange(), 0
            for feeds in open_source(data, inputs, samples=run.recipe.samples):
                shapes.watch(feeds)
                count += 1
            observed = Observations(shapes=shapes, feeds=count)
    with run.stage("legalize"):
        legal = models.copy(loaded)
        run.reports.extend(Pipeline(NameEverything(), NormalizeConstants(), Legalize(run.target))(legal.graph))
    plan = decide.existing(legal.graph)
    with workshop(paths) as shop:
        models.save(legal, shop / paths.qdq.name)
        decoder = decoders.of_model(legal)
        profiles = profiles_of(run, observed, inputs, decoder)
        built = build_engine(run, engine, shop / paths.qdq.name, shop / Path(output).name, profiles)
        audited = audit_engine(run, shop / Path(output).name, shop / paths.qdq.name, plan)
        (shop / paths.qdq.name).unlink()
        (shop / paths.qdq.name).with_suffix(".data").unlink(missing_ok=True)
        record = manifest.build(
            source=manifest.File.of(model),
            recipe=run.recipe,
            passes=run.reports,
            plan=plan,
            engine=built,
            profiles=[profile.to_json() for profile in profiles],
            cache=decoder and decoder.to_json(),
            audit=audited,
            timings=run.timings,
            warnings=run.warnings,
        )
        finish(shop, paths, record)
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

    Of a `Text` the last 20 % are used, as `compile` does to compare.

    Raises:
        EngineError: `quantized` is an engine and there is no hardware here to run it.
        DataError: the data does not fit.
    """
    asked = recipe or Recipe()
    reference = float_model if isinstance(float_model, models.Model) else models.load(float_model)
    inputs = inputs_of(reference.graph)
    if isinstance(data, texts.Text):  # what is named here stands over what the recipe's compilation compared on
        data = texts.evaluation(asked.replace(verify_text=()), data, reference.graph) or data
    read = data if isinstance(data, texts.Text) else texts.evaluation(asked, None, reference.graph)
    metric = chosen_metric(asked, read, inputs)
    most = asked.samples or (asked.verify_samples or None if isinstance(data, texts.Text) else None)
    source = open_source(data, inputs, samples=most)
    with (progress or silent).stage("verify", asked.verify_samples + runs_of(metric)) as stage:
        done: Callable[[], None] = lambda: stage.advance(1)  # noqa: E731
        if isinstance(quantized, models.Model) or Path(quantized).suffix == ".onnx":
            return compare(reference, quantized, source, samples=asked.verify_samples, metric=metric, advance=done)
        with for_target(asked.resolve()).open(quantized) as runner:
            return compare(reference, runner.infer, source, samples=asked.verify_samples, metric=metric, advance=done)
