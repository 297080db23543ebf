"""The stage that reads the model, opens the data, and finds its batch axes and what results will be judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.compiler.artefacts import Paths, refuse_overwriting
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.data.batches import NO_BATCH
from qcompiler.data.deal import deal
from qcompiler.data.files.opened import UNPREPARED
from qcompiler.data.find_batch import Told, check, find
from qcompiler.data.source import Data, open_source, prepared, suited
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.judge.views import check_ignored
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.tables import PreprocessTable
from qcompiler.support.file import File
from qcompiler.verification.held_out import HeldOut, judge_of

_NAMED = 5  # inputs
NOTHING_TO_JOIN = (
    "--batch {} joins nothing: no axis of the inputs was found to be a batch; if one is, say which: --batch-axis x=0"
)


@dataclass(frozen=True)
class LoadOptions:
    """What is read.

    Attributes:
        paths: the artefacts, none of which may take the place of an input.
        samples: so many feeds of the data; None for all.
        batch: so many of them in one run; None as they come.
        held_out: what results are judged by.
        scope: where layers are looked for.
        export: how the model was exported, for the manifest; None where it was an ONNX file.
        batch_axes: what the user says of the axes of inputs.
        ignored: outputs that nothing is to be judged by.
        preprocess: how pictures, sounds and other files become samples.
    """

    paths: Paths
    samples: int | None
    batch: int | None
    held_out: HeldOut
    scope: Scope
    export: Mapping[str, Any] | None = None
    batch_axes: Told = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    preprocess: PreprocessTable = UNPREPARED


@stage(kept=False)
def load(run: Compilation, source: str | Path | models.Model, data: Data | None, options: LoadOptions) -> Done[Subject]:
    """The model as it stands in the file.

    Raises:
        ModelError: it cannot be read, or a weight is not finite.
        DataError: there is no such data, or it can be read only once.
        UsageError: an artefact would take the place of an input, a metric lacks its text, or a batch axis is named that
            the model does not have, or an output.
    """
    with run.working():
        model = source if isinstance(source, models.Model) else models.load(source)
        refuse_overwriting(model, data, options.paths)
        models.check_finite(model)
        inputs = inputs_of(model.graph)
        data = prepared(suited(data, model.graph), options.preprocess, options.held_out.data)
        samples = None if data is None else open_source(data, inputs, samples=options.samples, batch=options.batch)
        judge = judge_of(options.held_out, data, model)
        check(options.batch_axes, inputs)
        check_ignored(options.ignored, [output.name for output in model.graph.outputs])
        axes = NO_BATCH if samples is None else find(model.graph, samples, inputs, options.batch_axes)
        samples = None if samples is None else samples.along(axes)
        parts = None if samples is None else deal(samples, judged_apart=judge.data is not None)
    if model.defaults:
        run.warn(_kept_defaults(model.defaults))
    if samples is not None and samples.batch and not axes.axes:
        run.warn(NOTHING_TO_JOIN.format(samples.batch))
    file = File.of(model.source) if model.source else None
    record = {
        "source": file,
        "export": options.export,
        "random_data": samples is not None and samples.random,
        "batch": axes.to_json(),
    }
    return Done(Subject(model, model, samples, judge, options.scope, parts, axes), record)


def _kept_defaults(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return (
        f"inputs with a default value become that constant: {listed}{more}. To feed one, remove its initializer from "
        "the file"
    )
