"""`verify()`: two models, or a model and an engine, on the same data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qcompiler.data.source import Data, open_source, prepared
from qcompiler.data.text import Text
from qcompiler.engines import for_target
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.judge.views import check_ignored
from qcompiler.passes.fixed import Fixed, fixed, fixed_by
from qcompiler.passes.importing import imported
from qcompiler.passes.known_part import known_part
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.progress import Progress, silent
from qcompiler.verification.alignment import aligned
from qcompiler.verification.compare import Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.held_out import HeldOut, chosen_metric, evaluation, runs_of
from qcompiler.verification.reading import read


def verify(
    float_model: str | Path | models.Model,
    quantized: str | Path | models.Model,
    *,
    data: Data,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compares two models, or a model and an engine, on `recipe.verify_samples` samples of `data`.

    Of a `Text` the last 20 % are used, as `compile` does to compare. Of a model with plugins the part in front of them
    is compared, as `compile` does.

    Raises:
        EngineError: `quantized` is an engine and there is no hardware here to run it.
        DataError: the data does not fit.
    """
    asked = recipe or Recipe()
    wanted = fixed_by(asked.fix_input, asked.fix_shape)
    reference = imported(known_part(fixed(read(float_model), wanted)[0]).model)
    inputs = inputs_of(reference.graph)
    check_ignored(asked.ignore_output, [output.name for output in reference.graph.outputs])
    other = HeldOut(asked.verify_samples, asked.verify_data, asked.verify_text, asked.metric, asked.text)
    if isinstance(data, Text):  # what is named here stands over what the recipe's compilation compared on
        here = HeldOut(asked.verify_samples, asked.verify_data, (), asked.metric, asked.text)
        data = evaluation(here, data, reference.graph) or data
    judged = data if isinstance(data, Text) else evaluation(other, None, reference.graph)
    metric = chosen_metric(other, judged, inputs)
    most = asked.samples or (asked.verify_samples or None if isinstance(data, Text) else None)
    source = open_source(prepared(data, asked.preprocess), inputs, samples=most, stored=reference.ends)
    with (progress or silent).stage("verify", asked.verify_samples + runs_of(metric)) as stage:
        done: Callable[[], None] = lambda: stage.advance(1)  # noqa: E731
        on = partial(
            compare,
            reference,
            source=source,
            samples=asked.verify_samples,
            metric=metric,
            ignored=asked.ignore_output,
            advance=done,
        )
        if isinstance(quantized, models.Model) or Path(quantized).suffix == ".onnx":
            rounded = quantized if isinstance(quantized, models.Model) else models.load(quantized)
            rounded = known_part(fixed(rounded, _still_there(wanted, rounded))[0]).model
            inner, remark = aligned(reference, rounded, asked.resolve())
            found = on(quantized=rounded, normal=inner)
            return dataclasses.replace(found, remarks=(*found.remarks, remark)) if remark else found
        with for_target(asked.resolve()).open(quantized) as runner:
            return on(quantized=runner.infer)


def _still_there(wanted: Fixed, model: models.Model) -> Fixed:
    """Those of the inputs that are to be constants which a model still has; the compiler writes models without."""
    names = {tensor.name for tensor in model.graph.inputs}
    return Fixed({name: value for name, value in wanted.inputs.items() if name in names})
