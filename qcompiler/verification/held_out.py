"""The data and the metric that results are judged by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.data.files.opened import UNPREPARED
from qcompiler.data.identity import content_of, is_code
from qcompiler.data.source import Data, open_source, prepared
from qcompiler.data.text import Text, fitted
from qcompiler.errors import UsageError
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.recipe.checks import METRICS
from qcompiler.recipe.tables import PreprocessTable, TextTable
from qcompiler.verification.perplexity import Perplexity, on


@dataclass(frozen=True)
class HeldOut:
    """What is asked for.

    Attributes:
        samples: feeds that float and quantized are compared on; 0 for no comparison.
        data: other data than the calibration data, written like `--data`; None for none.
        texts: other text files.
        metric: a built-in one, or the user's: `file.py:function`; None for none.
        table: tokenizer, length and stride of windows of text.
        preprocess: how pictures, sounds and other files become samples.
    """

    samples: int
    data: str | None
    texts: tuple[str, ...]
    metric: str | None
    table: TextTable
    preprocess: PreprocessTable = UNPREPARED


@dataclass(frozen=True, eq=False)
class Judge:
    """What results are judged by.

    Attributes:
        data: other data than what ranges are taken from; None where there is none.
        metric: what models are scored by; None where nobody asked.
    """

    data: Data | None = None
    metric: str | Perplexity | None = None

    def content(self) -> object:
        """The files of the data, and the metric as it is written: what its code depends on, nobody here knows."""
        return content_of(self.data), self.metric

    @property
    def foreign(self) -> bool:
        """Whether code of the user has a say, which may give something else tomorrow."""
        return is_code(self.data) or (self.metric is not None and not isinstance(self.metric, Perplexity))


def judge_of(asked: HeldOut, data: Data | None, model: Model) -> Judge:
    """Finds data and metric, before anything long is started.

    Args:
        asked: what is asked for.
        data: the calibration data.
        model: as it was loaded.

    Raises:
        UsageError: text is needed, or a tokenizer, and there is none.
        DataError: text, tokenizer or model do not fit.
    """
    other = prepared(asked.data, asked.preprocess, data)
    if not asked.samples:
        return Judge(other)
    inputs = inputs_of(model.graph)
    text = evaluation(asked, data, model.graph)
    metric = chosen_metric(asked, text, inputs)
    if text is not None:
        open_source(text, inputs, samples=asked.samples)
    return Judge(other or text, metric)


def chosen_metric(asked: HeldOut, text: Text | None, inputs: Inputs) -> str | Perplexity | None:
    """The metric: perplexity on `text` as something that can be called, any other as it is written.

    Raises:
        UsageError: perplexity was asked for and there is no text, or the stride does not fit the length.
        DataError: text, tokenizer or model do not fit.
    """
    if asked.metric not in METRICS:
        return asked.metric
    if text is None:
        raise UsageError(
            f"metric '{asked.metric}' needs text: give --text FILE --tokenizer DIR for calibration, or --verify-text "
            "FILE --tokenizer DIR for evaluation alone."
        )
    table = asked.table
    return on(
        text, inputs, stride=table.stride, tokens=table.tokens or None, cached=asked.metric == "perplexity-cached"
    )


def runs_of(metric: object) -> int:
    """How often a metric runs both models together; 0 where it does not say."""
    return 2 * int(getattr(metric, "runs", 0))


def evaluation(asked: HeldOut, data: object, graph: gs.Graph) -> Text | None:
    """The text that float and quantized are compared on: other text, else the last 20 % of the calibration text.

    Files of other text that calibrate too are only used from 80 % on, others as a whole.

    Args:
        asked: its `texts` and its table.
        data: the calibration data.
        graph: the model, for the rows of its embedding.

    Returns:
        None where there is no text.

    Raises:
        UsageError: there is text and no tokenizer.
    """
    own = data if isinstance(data, Text) else None
    if not asked.texts:
        return None if own is None else fitted(_other_part(own), graph)
    tokenizer = own.tokenizer if own is not None else asked.table.tokenizer
    if tokenizer is None:
        raise UsageError(
            "verify_text needs a tokenizer: give --tokenizer DIR, or the key 'tokenizer' below [text] of the recipe."
        )
    found = Text(asked.texts, tokenizer, own.length if own is not None else asked.table.length, "evaluation")
    seen = {file.resolve() for file in own.files} if own is not None else set()
    fresh = tuple(file for file in found.files if file.resolve() not in seen)
    return fitted(dataclasses.replace(found, whole=fresh), graph)


def _other_part(text: Text) -> Text:
    """What is compared on where a text does both; a caller who chose all of it, or the evaluation part, gets that."""
    return dataclasses.replace(text, part="evaluation") if text.part == "calibration" else text
