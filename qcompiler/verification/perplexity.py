"""Perplexity of a causal language model, with the protocol that the metric `perplexity` stands for.

    perplexity = exp( mean over the counted tokens of -ln p(token | the tokens before it in its window) )

A text is encoded once, without special tokens. Windows of N tokens slide over it by S: the first window counts all its
tokens but the first token of the text, which nothing predicts; each later window counts the tokens that no earlier one
has seen, at most S, so that every token is counted once and, beyond the first window, with at least N - S tokens of
context. The last window is moved back to end with the text. Where the tokenizer's post-processor puts tokens in front
of a text (a begin-of-text token), every window opens with them; they belong to its N tokens and are never counted. The
mean is over the tokens of all files together. Lower is better.

With cache (`perplexity-cached`) the same windows are run as a prefill of half the window, chunks of 16 tokens and a
last step of one token, each fed with the keys and values of those before: both ways must give the same number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.data.text import Text
from qcompiler.data.tokenizer import load_tokenizer
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.token_feeds import Filler, present_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Run = Callable[[Feeds], Any]


TOKENS: Final = 8192  # that are counted at most where nobody says
CHUNK: Final = 16  # tokens of a step with cache
PROTOCOL: Final = (
    "exp of the mean natural-log loss; windows of `length` tokens that slide by `stride`; every token but the first of "
    "a text is counted once, beyond the first window with at least length - stride tokens of context"
)


@dataclass(frozen=True, eq=False)
class Window:
    """Token ids that are run at once.

    Attributes:
        ids: int64 [T].
        counted: how many of the last ones are counted, 1 to T - 1.
    """

    ids: NDArray[np.int64]
    counted: int


@dataclass(frozen=True, eq=False)
class Perplexity:
    """A metric: called with `run(feeds) -> outputs`, it returns the perplexity; the same windows every time.

    Attributes:
        windows: what is run.
        filler: makes the feeds of a model.
        cached: whether windows go through the cache step by step.
        past: the cache that every window begins with, by input name [batch, heads, positions, size]; None: empty.
        label: how reports call it.
        details: the protocol in figures, for the manifest.
        higher_is_better: False.
    """

    windows: tuple[Window, ...]
    filler: Filler
    cached: bool = False
    past: Mapping[str, NDArray[Any]] | None = None
    label: str = "perplexity"
    details: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = False

    def __call__(self, run: Run) -> float:
        """See `perplexity`."""
        return perplexity(run, self.windows, filler=self.filler, cached=self.cached, past=self.past)

    @property
    def runs(self) -> int:
        """How often the model is run."""
        return sum(len(_steps(len(one.ids), self.cached)) for one in self.windows)

    @property
    def cuts(self) -> Sequence[int]:
        """The run that each window begins with: where the metric may be cut in parts."""
        steps = [len(_steps(len(one.ids), self.cached)) for one in self.windows]
        return list(itertools.accumulate(steps[:-1], initial=0))


def metric(
    path: str | Path | Sequence[str | Path],
    tokenizer: str | Path,
    inputs: Inputs,
    *,
    length: int | None = None,
    stride: int | None = None,
    tokens: int | None = TOKENS,
    part: str = "evaluation",
    cached: bool = False,
    past: Mapping[str, NDArray[Any]] | None = None,
    rows: int | None = None,
) -> Perplexity:
    """The metric on a text.

    Args:
        path: UTF-8 text file, folder of .txt files, or several.
        tokenizer: `tokenizer.json` or the folder that has one.
        inputs: the model's: name to dtype and shape.
        length: N, tokens of a window; None: what the model takes, or 256.
        stride: S, 1 to N - 1; None: N // 2.
        tokens: encode so many tokens of the text at most; None: all.
        part: of the text: evaluation (the last 20 %), calibration (the first 80 %) or all.
        cached: run windows step by step through `past_key_values` and `present`.
        past: keys and values that stand in front of every window, by input name; positions and mask are shifted.
        rows: rows of the model's embedding, which no id may reach.

    Raises:
        DataError: text, tokenizer or model do not fit.
        UsageError: the stride does not fit the length, or the model has no cache.
    """
    text = Text(path, tokenizer, length, part, rows=rows)
    return on(text, inputs, stride=stride, tokens=tokens, cached=cached, past=past)


def on(
    text: Text,
    inputs: Inputs,
    *,
    stride: int | None = None,
    tokens: int | None = TOKENS,
    cached: bool = False,
    past: Mapping[str, NDArray[Any]] | None = None,
) -> Perplexity:
    """The metric on a `Text`; see `metric`."""
    filler, reader = Filler(inputs), load_tokenizer(text.tokenizer)
    if cached and (not filler.past or filler.length is not None):
        raise UsageError(
            "metric perplexity-cached needs a model with past_key_values inputs and a free length: export it with a "
            "cache, or use --metric perplexity."
        )
    size = text.window_length(filler)
    step = size // 2 if stride is None else stride
    windows: list[Window] = []
    for ids in text.streams(reader, tokens):
        text.check_ids(reader, reader.before)
        if filler.length is not None and len(ids) + len(reader.before) < size:
            raise DataError(
                f"the evaluation text has {len(ids)} tokens, and the model takes exactly {size}: it is too short. "
                "Give longer text."
            )
        windows += cut(ids, size, step, reader.before)
    counted = sum(one.counted for one in windows)
    details = {
        "protocol": PROTOCOL,
        "tokens": counted,
        "windows": len(windows),
        "length": size,
        "stride": step,
        "cached": cached,
        "text": text.name,
        "tokenizer": reader.name,
    }
    label = f"perplexity{' with cache' * cached} (N {size}, S {step}, {counted} tokens)"
    return Perplexity(tuple(windows), filler, cached, past, label, details)


def sliding(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows over `tokens` tokens, at least 2, as (begin, end, how many of the last ones are counted)."""
    end = min(length, tokens)
    found = [(0, end, end - 1)]
    while end < tokens:
        fresh = min(stride, tokens - end)
        end += fresh
        found.append((end - length, end, fresh))
    return found


def cut(ids: Sequence[int], length: int, stride: int, before: Sequence[int] = ()) -> list[Window]:
    """The windows of a text, each opened with the tokens `before`, which count towards `length`.

    Raises:
        UsageError: the stride leaves some token without context.
    """
    most = length - max(1, len(before))
    if not 1 <= stride <= most:
        raise UsageError(
            f"a stride of {stride} does not fit windows of {length} tokens: choose 1 to {most}, so that every counted "
            "token has another one before it."
        )
    return [
        Window(np.array([*before, *ids[begin:end]], np.int64), counted)
        for begin, end, counted in sliding(len(ids), length - len(before), stride)
    ]


def perplexity(
    run: Run,
    windows: Sequence[Window],
    *,
    filler: Filler,
    cached: bool = False,
    past: Mapping[str, NDArray[Any]] | None = None,
) -> float:
    """exp of the mean loss of the counted tokens; not a number where some logits are not.

    Args:
        run: feeds to outputs: a list, or by name; logits are the output `logits`, else the first one.
        windows: see `cut`.
        filler: makes the feeds of the model.
        cached: step by step through the cache.
        past: the cache that every window begins with; None for an empty one.

    Raises:
        ModelError: the outputs are no logits of every token, or there is no output to continue the cache with.
    """
    total: list[float] = []
    count = 0
    for window in windows:
        first = len(window.ids) - window.counted  # place of the first counted token
        for begin, logits in _logits(run, window.ids, filler, cached, past):
            skip = max(0, first - 1 - begin)
            targets = window.ids[begin + skip + 1 : begin + len(logits) + 1]
            total.append(math.fsum(losses(logits[skip : skip + len(targets)], targets)))
            count += len(targets)
    mean = math.fsum(total) / count
    return math.inf if mean > 709 else math.exp(mean)


def losses(logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln softmax(logits)[target] of each row: logits [T, V] of any float type, targets [T] to float64 [T].

    The largest logit is taken off first, so nothing overflows. Row by row, so that a row stays in the cache.

    Raises:
        DataError: a target is beyond the vocabulary.
    """
    size = logits.shape[-1]
    largest = int(targets.max(initial=0))
    if largest >= size:
        raise DataError(
            f"token id {largest} of the text is beyond the {size} logits of the model: it is the tokenizer of another "
            "model."
        )
    found = np.empty(len(targets))
    buffer = np.empty(size, np.float32)
    with np.errstate(all="ignore"):  # a quantized model may well be broken: then the result is NaN
        for row, target in enumerate(targets):
            one = logits[row]
            top = np.float32(one.max())
            np.subtract(one, top, out=buffer, casting="unsafe")
            own = float(buffer[target])
            np.exp(buffer, out=buffer)
            found[row] = math.log(float(buffer.sum())) - own if np.isfinite(top) else math.nan
    return found


def _logits(
    run: Run, ids: NDArray[np.int64], filler: Filler, cached: bool, past: Mapping[str, NDArray[Any]] | None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Place of the first token of each step, and its logits [tokens, vocabulary]."""
    cache, seen = dict(past or {}), _positions(past)
    begin = 0
    for size in _steps(len(ids), cached):
        piece = ids[begin : begin + size]
        outputs = run(filler.feed([piece.tolist()] * filler.rows, cache, seen + begin))
        yield begin, _checked(outputs, size)
        begin += size
        if cached and begin < len(ids) - 1:
            cache = _continued(outputs, filler)


def _steps(tokens: int, cached: bool) -> list[int]:
    """Sizes of the pieces that a window is run in; with cache its last token, which predicts nothing, is left out."""
    if not cached:
        return [tokens]
    half = max(1, tokens // 2)
    rest = tokens - 1 - half
    chunks = [CHUNK] * ((rest - 1) // CHUNK) if rest > 1 else []
    left = rest - sum(chunks)
    return [half, *chunks, *([left - 1] if left > 1 else []), *([1] if left else [])]


def _positions(past: Mapping[str, NDArray[Any]] | None) -> int:
    return 0 if not past else int(next(iter(past.values())).shape[2])


def _checked(outputs: Any, tokens: int) -> NDArray[Any]:
    named = _named(outputs)
    logits = np.asarray(
        named["logits"] if "logits" in named else outputs[0] if not named else next(iter(named.values()))
    )
    if logits.ndim != 3 or logits.shape[1] != tokens:
        raise ModelError(
            f"perplexity needs logits of shape [batch, {tokens}, vocabulary] for {tokens} tokens, and the model gives "
            f"{list(logits.shape)}: it must be a causal language model that predicts at every token."
        )
    found: NDArray[Any] = logits[0]
    return found


def _named(outputs: Any) -> Mapping[str, Any]:
    names = outputs.keys() if hasattr(outputs, "keys") else ()
    return {name: outputs[name] for name in names}


def _continued(outputs: Any, filler: Filler) -> dict[str, NDArray[Any]]:
    """The cache of the next step out of the outputs of this one."""
    named = _named(outputs)
    found = {}
    for past in filler.past:
        name = present_of(past, list(named))
        if name is None:
            listed = ", ".join(f"'{one}'" for one in list(named)[:6])
            raise ModelError(
                f"the model has the cache input '{past}' and no output that continues it, such as "
                f"'{past.replace('past_key_values', 'present')}'; its outputs are {listed}. Export it with its cache "
                "as outputs, or use --metric perplexity."
            )
        found[past] = named[name]
    return found
