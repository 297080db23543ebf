"""`build()`: an engine from an ONNX file that is quantized already, or float."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qcompiler._old_stages import Run, audit_engine, build_engine, profiles_of
from qcompiler.compiler.artefacts import Paths, finish, refuse_overwriting, workshop
from qcompiler.compiler.compile import CompileResult
from qcompiler.data.samples import ShapeRange
from qcompiler.data.source import Data, open_source
from qcompiler.engines import for_target
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.base import Pipeline
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.planning.placement import candidates
from qcompiler.recipe.recipe import Recipe
from qcompiler.statistics.observe import Observations
from qcompiler.support.atomic import check_writable
from qcompiler.support.file import File
from qcompiler.support.progress import Progress, silent
from tests.kit import manifests


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
    plan = candidates.existing(legal.graph)
    with workshop(paths) as shop:
        models.save(legal, shop / paths.qdq.name)
        decoder = decoder_io.of_model(legal)
        profiles = profiles_of(run, observed, inputs, decoder)
        built = build_engine(run, engine, shop / paths.qdq.name, shop / Path(output).name, profiles)
        audited = audit_engine(run, shop / Path(output).name, shop / paths.qdq.name, plan)
        (shop / paths.qdq.name).unlink()
        (shop / paths.qdq.name).with_suffix(".data").unlink(missing_ok=True)
        record = manifests.build(
            source=File.of(model),
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
