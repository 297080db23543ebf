"""`build()`: an engine from an ONNX file that is quantized already, or float: nothing is quantized here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompiler.compiler.artefacts import Paths, finish, refuse_overwriting, workshop
from qcompiler.compiler.base import Compilation, Done, checked, stage
from qcompiler.compiler.compile import CompileResult
from qcompiler.compiler.pricing import taken
from qcompiler.compiler.record import manifest
from qcompiler.compiler.serving import BuildOptions, profiles_of, shown
from qcompiler.compiler.stages.audit import audit
from qcompiler.compiler.stages.build_engine import build_engine
from qcompiler.data import find_batch, lacks, profiles
from qcompiler.data.find_batch import Told
from qcompiler.data.samples import Keep, ShapeRange
from qcompiler.data.source import Data, open_source, prepared
from qcompiler.engines import Profile, for_target
from qcompiler.engines.prediction import Prediction, predicted_for
from qcompiler.engines.roofline import Roofline, roofline
from qcompiler.errors import DataError, EngineError
from qcompiler.ir import decoder_io
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.outliers.llm_int8 import Splits
from qcompiler.passes import pipelines
from qcompiler.passes.base import Fact, Pipeline
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.quantize.remove_qdq import RemoveQDQ
from qcompiler.plan import Plan
from qcompiler.planning.decisions import accounted
from qcompiler.planning.placement.candidates import existing
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.work import count_macs_without_data
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.support.atomic import check_writable
from qcompiler.support.file import ModelFile
from qcompiler.support.progress import Progress, silent
from qcompiler.target import DType, Target
from qcompiler.weight_only import methods


@stage(kept=False)
def load(
    run: Compilation,
    source: str | Path,
    data: Data | None,
    samples: int | None,
    paths: Paths,
    batch_axes: Told,
    *,
    profile: bool,
) -> Done[tuple[models.Model, Observations]]:
    """The file, and the shapes of the data; `profile`: these alone say which shapes the engine takes."""
    with run.working():
        loaded = models.load(source)
        refuse_overwriting(loaded, data, paths)
        seen = Observations() if data is None else _seen(loaded, data, samples, batch_axes)
    inputs, decoder = inputs_of(loaded.graph), decoder_io.of_model(loaded)
    if seen.feeds and profile and (decoder is None or not decoder.pairs):
        for text in lacks.sizes(shown(loaded, seen, inputs), inputs):
            run.warn(text)
    return Done((loaded, seen), {"source": ModelFile.of(source, loaded.files[1:]), "batch": seen.axes.to_json()})


def _seen(loaded: models.Model, data: Data, samples: int | None, batch_axes: Told) -> Observations:
    """The shapes of the data, and one of its feeds."""
    inputs = inputs_of(loaded.graph)
    source = open_source(data, inputs, samples=samples)
    axes = find_batch.find(loaded.graph, source, inputs, batch_axes)
    shapes, feeds, kept = ShapeRange(), 0, Keep(1)
    for feed in source:
        shapes.watch(feed)
        kept.offer(feed)
        feeds += 1
    return Observations(kept=tuple(kept.feeds), shapes=shapes, axes=axes, feeds=feeds)


@stage(version=2)
def legalize(
    run: Compilation, loaded: models.Model, target: Target, usual: Mapping[str, Sequence[int]]
) -> Done[tuple[models.Model, Plan]]:
    """The model as the target reads it, and the plan that it embodies already.

    Args:
        run: shows the work.
        loaded: the file.
        target: the engine.
        usual: shapes of inputs, for the work of each node; open axes of all others count as 1.
    """
    model = models.copy(loaded)
    with run.working():
        reports = Pipeline(NameEverything(), NormalizeConstants())(model.graph)
        reports += pipelines.readable(model.graph, target)(model.graph)
        reports += Pipeline(Legalize(target), given=frozenset({Fact.NAMED}))(model.graph)
    work, decoder = count_macs_without_data(model.graph, usual), decoder_io.of_model(model)
    plan = accounted(existing(model.graph), model.graph, work, target.high_precision)
    record = {
        "macs": plan.macs_by_precision(),
        "plan": list(plan),
        "quantizers": list(plan.quantizers.values()),
        "cache": decoder and decoder.to_json(),
        "holds": [str(one) for one in DType if one.quantized and any(kept.precision is one for kept in plan)],
    }
    return Done((model, plan), record, checked(reports, {}))


@stage(kept=False)
def predict(
    run: Compilation,
    legal: models.Model,
    plan: Plan,
    engine: Path,
    seen: Observations,
    inputs: Inputs,
    options: BuildOptions,
) -> Done[Prediction | None]:
    """The predicted time of the engine beside the same model with its Q/DQ pairs taken out, in high precision.

    That is typed as if all values had room in that type: which do, only data would tell.

    Args:
        run: shows the work.
        legal: the model in the engine.
        plan: what is quantized in it.
        engine: the engine file.
        seen: shapes of the data.
        inputs: of the file.
        options: what the engine serves.
    """
    target = options.target
    if target.engine != "tensorrt-rtx" or not plan.quantized():
        return Done(None, {"prediction": None})
    usual: dict[str, tuple[int, ...]] = {}
    served: list[Profile] = []
    own = high = Roofline(())
    why = "the engine has no listing that can be read"
    with run.working():
        try:
            served = profiles_of(legal, seen, inputs, options, lambda _: None)
            usual = {name: opt for name, (_, opt, _) in served[0].shapes.items()} if served else {}
            work = count_macs_without_data(legal.graph, usual)
            own = roofline(engine, work)
            if not own.launches or own.unsized:
                own = taken(legal, target, usual, work, engine.parent)
            high = taken(_twin(legal, target), target, usual, work, engine.parent)
        except (EngineError, DataError) as error:
            own, why = Roofline(()), str(error)
    found = Prediction(target.high_precision, high, own, predicted_for(target, own), usual, max(len(served), 1))
    if not own.launches or not high.launches or not found.gpus:
        text = f"how long the engine takes beside high precision is not predicted: {why}"
        run.warn(text)
        return Done(None, {"prediction": {"sms": {}, "leaves_out": "everything", "warning": text, "tried": []}})
    record: dict[str, Any] = {**found.to_json(), "tried": []}
    if found.slower:  # nothing is quantized here, so nothing can be told to stay float
        record["warning"] = found.told_slower
        run.warn(found.told_slower)
    return Done(found, {"prediction": record})


def _twin(legal: models.Model, target: Target) -> models.Model:
    """The model with nothing in Q/DQ pairs, everything in high precision that the type can do."""
    twin = models.copy(legal)
    Pipeline(RemoveQDQ(), given=frozenset({Fact.NAMED, Fact.CONSTANTS}))(twin.graph)
    fits = {one.name: Range(-1.0, 1.0) for graph in graphs.graphs(twin.graph) for one in graphs.tensors(graph)}
    typed = HighPrecision(target.high_precision, ranges=Ranges(fits), typed_dequantize=target.typed_dequantize)
    Pipeline(typed, Legalize(target), given=frozenset({Fact.NAMED, Fact.CONSTANTS}))(twin.graph)
    return twin


def _usual(asked: Recipe, seen: Observations, loaded: models.Model) -> dict[str, tuple[int, ...]]:
    """The usual shapes of inputs: those of the recipe, else as the data showed them."""
    if asked.shapes is not None:
        return {name: tuple(sizes[1]) for name, sizes in asked.shapes.items()}
    return profiles.usual(seen.shapes, inputs_of(loaded.graph), seen.axes) if seen.feeds else {}


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
    asked, run = recipe or Recipe(), Compilation(progress or silent)
    target, paths = asked.resolve(), Paths.of(Path(output), build=True)
    for path in (Path(output), paths.manifest, paths.report):
        check_writable(path)
    for_target(target)
    beside = dataclasses.replace(paths, qdq=paths.manifest)  # the quantized file is an input here
    profile = asked.shapes is None and target.engine != "onnxruntime"
    data = prepared(data, asked.preprocess)
    loaded, seen = run(load, model, data, asked.samples, beside, asked.batch_axis or {}, profile=profile)
    legal, plan = run(legalize, loaded, target, _usual(asked, seen, loaded))
    options = BuildOptions(target, asked.shapes, asked.generation, methods.needs_rows(asked.precision, target))
    with workshop(paths) as shop:
        file, engine = shop / paths.qdq.name, shop / paths.output.name
        models.save(legal, file)
        run(build_engine, file, engine, legal, seen, inputs_of(loaded.graph), options)
        run(audit, engine, file, plan, Splits(), target, asked.strict)
        run(predict, legal, plan, engine, seen, inputs_of(loaded.graph), options)
        file.unlink()
        file.with_suffix(".data").unlink(missing_ok=True)
        record = manifest(run, asked)
        finish(shop, paths, record)
    return CompileResult(legal, plan, record, None, Path(output), Path(model), paths.manifest, paths.report)
