"""`verify()`: two models, or a model and an engine, on the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qcompiler._old_stages import runs_of
from qcompiler.data import text as texts
from qcompiler.data.source import Data, open_source
from qcompiler.engines import for_target
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.progress import Progress, silent
from qcompiler.verification import held_out
from qcompiler.verification.compare import Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.held_out import chosen_metric


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
        data = held_out.evaluation(asked.replace(verify_text=()), data, reference.graph) or data
    read = data if isinstance(data, texts.Text) else held_out.evaluation(asked, None, reference.graph)
    metric = chosen_metric(asked, read, inputs)
    most = asked.samples or (asked.verify_samples or None if isinstance(data, texts.Text) else None)
    source = open_source(data, inputs, samples=most)
    with (progress or silent).stage("verify", asked.verify_samples + runs_of(metric)) as stage:
        done: Callable[[], None] = lambda: stage.advance(1)  # noqa: E731
        if isinstance(quantized, models.Model) or Path(quantized).suffix == ".onnx":
            return compare(reference, quantized, source, samples=asked.verify_samples, metric=metric, advance=done)
        with for_target(asked.resolve()).open(quantized) as runner:
            return compare(reference, runner.infer, source, samples=asked.verify_samples, metric=metric, advance=done)
