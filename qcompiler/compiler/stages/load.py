"""The stage that reads the model, opens the data, and finds its batch axes and what results will be judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from qcompiler.compiler.artefacts import Paths, refuse_overwriting
from qcompiler.compiler.base import Compilation, Done, checked, stage
from qcompiler.compiler.subject import Subject
from qcompiler.data.batches import NO_BATCH
from qcompiler.data.deal import deal
from qcompiler.data.files import known_ranges
from qcompiler.data.files.opened import UNPREPARED
from qcompiler.data.find_batch import Told, check, find
from qcompiler.data.source import Data, Source, open_source, prepared, suited
from qcompiler.errors import DataError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.judge.views import check_ignored
from qcompiler.passes.fixed import Fixed, fixed
from qcompiler.passes.importing import imported
from qcompiler.passes.known_part import known_part, refuse_unknown
from qcompiler.planning.placement import known
from qcompiler.planning.placement.scope import Scope
from qcompiler.planning.recorded import Recorded
from qcompiler.recipe.tables import PreprocessTable
from qcompiler.runtime import plugins
from qcompiler.support.as_json import plain
from qcompiler.support.file import File, ModelFile
from qcompiler.support.memory import weigh
from qcompiler.verification.held_out import HeldOut, judge_of
from qcompiler.verification.narrowing import Narrowing, is_narrower, narrowing
from qcompiler.verification.reading import read
from qcompiler.verification.replay import fitting_inputs

_NAMED = 5
_NARROWED = 4  # samples that double and FP32 are compared on
NOTHING_TO_JOIN = (
    "--batch {} joins nothing: no axis of the inputs was found to be a batch; if one is, say which: --batch-axis x=0"
)

MENDED = (
    "constants that were rounded to infinity or 0 in 16 bits can make NaN where they multiply or guard a division, and "
    "are read as the largest or smallest number of their type: {}. In other runtimes they stay as they are: let the "
    "converter clip"
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
        ranges: a file with ranges that are known; None for none.
        fixed: inputs that become constants, axes that get a size.
        replayed: the front of an earlier compilation, which must have been of the same model; None where there is none.
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
    ranges: str | None = None
    fixed: Fixed = field(default_factory=Fixed)
    replayed: Recorded | None = None


@stage(kept=False)
def load(run: Compilation, source: str | Path | models.Model, data: Data | None, options: LoadOptions) -> Done[Subject]:
    """The model as it stands in the file, but for its float types, which become FP32.

    Raises:
        ModelError: it cannot be read, a weight is not finite, or a type cannot be had in FP32; or a front that is
            replayed is of another model.
        DataError: there is no such data, or it can be read only once; ranges cannot be read, or are of another model.
        UsageError: an artefact would take the place of an input, a metric lacks its text, or a batch axis is named that
            the model does not have, or an output, or an input cannot be fixed as it is asked.
    """
    with run.working():
        plugins.use(options.scope.target.plugins if options.scope.target.engine == "onnxruntime" else ())
        loaded = read(source)
        weigh(graphs.weight_bytes(loaded.graph))
        if options.replayed is not None and loaded.source:
            options.replayed.refuse_other_model(File.of(loaded.source).sha256)
        refuse_overwriting(loaded, data, options.paths)
        refuse_overwriting(loaded, options.ranges, options.paths, "--ranges")
        check_ignored(options.ignored, [output.name for output in loaded.graph.outputs])
        loaded, fixings = fixed(loaded, options.fixed)
        part = known_part(loaded)
        refuse_unknown(part, options.scope.target)
        original = part.model
        models.check_finite(original)
        model = imported(original)
        inputs = inputs_of(model.graph)
        scope, ranges = _with_ranges(run, model, options)
        data = prepared(suited(data, model.graph), options.preprocess, options.held_out.data)
        samples = None
        if data is not None:
            samples = open_source(data, inputs, samples=options.samples, batch=options.batch, stored=model.ends)
        judge = judge_of(options.held_out, data, model)
        check(options.batch_axes, inputs)
        narrower = None if data is None else _narrowing(original, model, data, samples)
        axes = NO_BATCH if samples is None else find(model.graph, samples, inputs, options.batch_axes)
        samples = None if samples is None else samples.along(axes)
        parts = None if samples is None else deal(samples, judged_apart=judge.data is not None)
    if model.defaults:
        run.warn(_kept_defaults(model.defaults))
    if model.mended:
        run.warn(MENDED.format(_listed(model.mended)))
    if narrower is not None and narrower.warning:
        run.warn(narrower.warning)
    if samples is not None and samples.batch and not axes.axes:
        run.warn(NOTHING_TO_JOIN.format(samples.batch))
    if samples is not None:
        for given, name in samples.details.get("renamed", {}).items():
            run.warn(f"array '{given}' of {samples.name} is taken for the only input, '{name}'")
    if part.behind is not None:
        run.warn(part.behind.told())
    file = ModelFile.of(model.source, model.files[1:]) if model.source else None
    record = {
        "source": file,
        "export": options.export,
        "types": {
            "ends": {name: dtype.name for name, dtype in model.ends.items()},
            "mended": list(model.mended),
            "narrowing": None if narrower is None else plain(narrower),
        },
        "random_data": samples is not None and samples.random,
        "batch": axes.to_json(),
        "ranges": ranges,
        "not_measured": part.to_json(),
        "fixed": fixings,
    }
    subject = Subject(model, model, samples, judge, scope, parts, axes, behind=part.behind)
    return Done(subject, record, checked(part.reports, {}))


def _narrowing(original: models.Model, model: models.Model, data: Data, samples: Source | None) -> Narrowing | None:
    """What it costs that doubles became FP32, on a few samples; None where none did."""
    if samples is None or not is_narrower(original, model):
        return None
    exact = inputs_of(original.graph)
    try:
        given = list(islice(open_source(data, exact, samples=_NARROWED), _NARROWED))
    except DataError:  # float32 is taken as well; where it was something else, the samples say so
        given = [fitting_inputs(feed, exact) for feed in islice(samples, _NARROWED)]
    return narrowing(original, model, given)


def _with_ranges(run: Compilation, model: models.Model, options: LoadOptions) -> tuple[Scope, Mapping[str, Any] | None]:
    """The scope with the ranges that the user knows, and what the manifest says of them."""
    if options.ranges is None:
        return options.scope, None
    found = known_ranges.read(Path(options.ranges))
    every = [tensor for graph in graphs.graphs(model.graph) for tensor in graphs.tensors(graph)]
    there = {tensor.name for tensor in every if not graphs.is_constant(tensor)}
    unknown = [name for name in (*found.spans, *found.left_out) if name not in {tensor.name for tensor in every}]
    if not there & found.spans.keys():
        listed = _listed(list(found.spans) or list(found.left_out))
        raise DataError(
            f"'{options.ranges}' ({found.kind}) has no range that is of use for a tensor of this model; it names "
            f"{listed}: give the table that was made with this model, and look up names with qcompiler inspect"
        )
    if unknown:
        run.warn(f"'{options.ranges}' names tensors that the model does not have: {_listed(unknown)}")
    for why in dict.fromkeys(found.left_out.values()):
        names = [name for name, one in found.left_out.items() if one == why and name in there]
        if names:
            run.warn(f"'{options.ranges}' has no range that is of use for {_listed(names)}: {why}")
    record = {
        "name": options.ranges,
        "sha256": File.of(Path(options.ranges)).sha256,
        "kind": found.kind,
        "given": len(there & found.spans.keys()),
        "unknown": unknown,
        "left_out": dict(found.left_out),
    }
    return replace(options.scope, ranges=known.spread(model.graph, found.spans)), record


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + more


def _kept_defaults(names: tuple[str, ...]) -> str:
    return (
        f"inputs with a default value become that constant: {_listed(names)}. To feed one, remove its initializer from "
        "the file"
    )
