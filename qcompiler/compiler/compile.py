"""`compile()`: the life of a model as one readable function, and the commands that are parts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import _old_stages as old_stages
from qcompiler._old_stages import (
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
    readers,
    refuse_early,
    smooth,
    stricter,
    warn_where_nothing_is_quantized,
)
from qcompiler.compiler import ask
from qcompiler.compiler.artefacts import Paths, finish, refuse_overwriting, workshop
from qcompiler.data import text as texts
from qcompiler.data.source import Data, open_source
from qcompiler.engines import for_target
from qcompiler.frontends.export import exported
from qcompiler.frontends.sources import is_exportable
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.outliers import llm_int8 as splitting
from qcompiler.outliers.qfep import find
from qcompiler.outliers.smooth_quant import groups
from qcompiler.plan import Plan
from qcompiler.planning.placement import candidates
from qcompiler.planning.search import qfem
from qcompiler.recipe.recipe import Recipe
from qcompiler.statistics import outliers, residual
from qcompiler.support.file import File
from qcompiler.support.progress import Progress, silent
from qcompiler.verification.compare import Verification
from qcompiler.weight_only import give_back
from qcompiler.weight_only import methods as weights
from qcompiler.weight_only.record import into, record_of
from tests.kit import manifests

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
        settled = ask.settled(recipe, data)
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
    recipe = ask.settled(recipe, data)
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
    behind = old_stages.qfep_stage(run, model, normal, samples, found)
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
    apart = old_stages.llm_int8_stage(run, normal, candidates.Candidates(found, refused), observed)
    normal, observed, splits = apart.model, apart.observed, apart.splits
    found, refused = apart.layers
    rounded = old_stages.weight_only_stage(run, normal, samples, observed)
    normal, stored = open_stored(rounded.model, found), rounded.stored
    layers, scores = candidates.Candidates(found, refused), qfem.UNKNOWN
    while True:
        chosen = choose_plan(run, normal, layers, observed, scores)
        scores = chosen.scores
        settled, plan, splits = splitting.settle(normal, chosen.plan, splits)
        plan = into(plan, stored, run.target, [node.name for node in normal.graph.nodes])
        chosen = dataclasses.replace(chosen, plan=plan)
        lowered, plan = lower(run, settled, chosen, observed, weights.passes(stored))
        chosen = dataclasses.replace(chosen, plan=plan)
        verification = compare_models(run, model, settled, lowered, samples, observed, inputs, drift=build, front=front)
        tighter = stricter(run.recipe, run.gates, verification, chosen)
        if tighter is not None:
            run.recipe = tighter
            continue
        fewer = give_back.give_back(stored, verification, run.gates, run.recipe.safety.min_share)
        if fewer is None:
            break
        stored = fewer
    warn_where_nothing_is_quantized(run, chosen.plan)
    if verification is not None:
        give_back.require(verification, run.gates, stored)
    with workshop(paths) as shop:
        with run.stage("write"):
            written = models.save(lowered, shop / paths.qdq.name)
            prefix = find.save(prefixed, shop, paths.manifest.name.removesuffix(".manifest.json"))
        built, audited, profiles, decoder = None, None, [], decoder_io.of_model(lowered)
        if engine is not None:
            profiles = profiles_of(run, observed, inputs, decoder)
            built = build_engine(run, engine, shop / paths.qdq.name, shop / output.name, profiles)
            audited = audit_engine(run, shop / output.name, shop / paths.qdq.name, chosen.plan)
        record = manifests.build(
            source=File.of(model.source) if model.source else None,
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
            smoothing=groups.record_of(smoothed.groups, smoothed.tried),
            qfem=qfem.record_of(chosen.spared, seen),
            qfep=find.record_of(prefixed, run.metric, verification, None if prefix is None else prefix.name),
            llm_int8=splitting.record_of(splits, chosen.plan, recipe.llm_int8, shop / output.name if audited else None),
            weight_only=record_of(stored),
            verification=verification,
            engine=built,
            profiles=[profile.to_json() for profile in profiles],
            cache=decoder and decoder.to_json(),
            audit=audited,
            files={"qdq": File.of(written[0])} | ({"prefix": File.of(prefix)} if prefix else {}),
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
