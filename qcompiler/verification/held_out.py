"""The text and the metric that results are judged by."""

from __future__ import annotations

import dataclasses

import onnx_graphsurgeon as gs

from qcompiler.data.text import Text, fitted
from qcompiler.errors import UsageError
from qcompiler.ir.signature import Inputs
from qcompiler.recipe.recipe import METRICS, Recipe
from qcompiler.verification.perplexity import Perplexity, on


def chosen_metric(recipe: Recipe, text: Text | None, inputs: Inputs) -> str | Perplexity | None:
    """The recipe's metric: perplexity on `text` as something that can be called, any other as it is written.

    Raises:
        UsageError: perplexity was asked for and there is no text, or the stride does not fit the length.
        DataError: text, tokenizer or model do not fit.
    """
    if recipe.metric not in METRICS:
        return recipe.metric
    if text is None:
        raise UsageError(
            f"metric '{recipe.metric}' needs text: give --text FILE --tokenizer DIR for calibration, or --verify-text "
            "FILE --tokenizer DIR for evaluation alone."
        )
    table = recipe.text
    return on(
        text, inputs, stride=table.stride, tokens=table.tokens or None, cached=recipe.metric == "perplexity-cached"
    )


def evaluation(recipe: Recipe, data: object, graph: gs.Graph) -> Text | None:
    """The text that float and quantized are compared on: `verify_text`, else the last 20 % of the calibration text.

    Files of `verify_text` that calibrate too are only used from 80 % on, others as a whole.

    Args:
        recipe: its `verify_text` and its table `text`.
        data: the calibration data.
        graph: the model, for the rows of its embedding.

    Returns:
        None where there is no text.

    Raises:
        UsageError: there is text and no tokenizer.
    """
    own = data if isinstance(data, Text) else None
    if not recipe.verify_text:
        return None if own is None else fitted(_other_part(own), graph)
    tokenizer = own.tokenizer if own is not None else recipe.text.tokenizer
    if tokenizer is None:
        raise UsageError(
            "verify_text needs a tokenizer: give --tokenizer DIR, or the key 'tokenizer' below [text] of the recipe."
        )
    found = Text(recipe.verify_text, tokenizer, own.length if own is not None else recipe.text.length, "evaluation")
    seen = {file.resolve() for file in own.files} if own is not None else set()
    fresh = tuple(file for file in found.files if file.resolve() not in seen)
    return fitted(dataclasses.replace(found, whole=fresh), graph)


def _other_part(text: Text) -> Text:
    """What is compared on where a text does both; a caller who chose all of it, or the evaluation part, gets that."""
    return dataclasses.replace(text, part="evaluation") if text.part == "calibration" else text
