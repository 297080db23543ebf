"""Perplexity of a decoder whose weights are stored in few bits, method by method, and how much of a gap each closes.

    python -m benchmarks.weights MODEL.onnx TOKENIZER --text DIR [--precision P] [--block N] [--method M ...]

MODEL takes input_ids and gives logits, without a cache. Calibration takes 32 windows of 256 tokens from the first 80 %
of each text of DIR, evaluation 32 from the last 20 %. Everything but the weights is FP32, so that nothing else errs.
Reported: perplexity; KL, the mean over tokens of Σ p·ln(p / q) between what the float model and the stored one predict,
in nats; the share of the gap between rounding to nearest and float that a method closes, in the logarithm of the
perplexity and in KL; and what `qcompiler.quantize` took, in seconds. `rtn` is always measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qcompiler
from qcompiler.data.text import Text, feeds
from qcompiler.errors import QCompilerError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import WEIGHT_METHODS, WeightOnlyTable
from qcompiler.runtime.session import Session

LENGTH, WINDOWS = 256, 32
Array = Any


@dataclass(frozen=True)
class Figure:
    """What one way of storing comes to: mean loss and KL in nats per token, seconds."""

    loss: float
    kl: float
    seconds: float

    def __str__(self) -> str:
        return f"perplexity {np.exp(self.loss):.3f}   KL {self.kl:.4f}   compiled in {self.seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per method; 0: done, 1: something did not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description="Weights in few bits.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="tokenizer.json or its folder")
    parser.add_argument("--text", type=Path, required=True, metavar="DIR", help="UTF-8 .txt files")
    parser.add_argument("--precision", choices=("int4-weight", "int8-weight"), default="int4-weight")
    parser.add_argument("--block", type=int, choices=(32, 64, 128), default=128)
    methods = WEIGHT_METHODS[1:]
    parser.add_argument("--method", nargs="+", choices=methods, default=list(methods), metavar="M", help=str(methods))
    options = parser.parse_args(arguments)
    try:
        _measure(options)
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace) -> None:
    inputs = {"input_ids": (np.dtype(np.int64), ("batch", "length"))}
    taken = feeds(options.text, options.tokenizer, inputs, length=LENGTH, samples=WINDOWS, part="evaluation")
    windows = [feed["input_ids"] for feed in taken()]
    with tempfile.TemporaryDirectory() as folder:
        exact = np.lib.format.open_memmap(
            Path(folder) / "float.npy",
            "w+",
            np.float16,
            (len(windows), LENGTH - 1, _vocabulary(options.model, windows)),
        )
        for index, found in enumerate(_predictions(options.model, windows)):
            exact[index] = found
        plain = _figure(options.model, windows, exact, 0.0)
        print(f"{options.model}: {len(windows)} windows of {LENGTH} tokens\nfloat: {plain}", flush=True)
        nearest: Figure | None = None
        for method in dict.fromkeys(("rtn", *options.method)):
            stored, seconds = _stored(options, method, Path(folder) / "out.onnx")
            one = _figure(stored, windows, exact, seconds)
            nearest = nearest or one
            closed = (nearest.loss - one.loss) / (nearest.loss - plain.loss), 1 - one.kl / nearest.kl
            print(f"{method}: {one}   closes {closed[0]:.0%} of the loss, {closed[1]:.0%} of KL", flush=True)


def _stored(options: argparse.Namespace, method: str, output: Path) -> tuple[Path, float]:
    recipe = Recipe(
        target="tensorrt-rtx",
        high_precision="fp32",
        precision=options.precision,
        samples=WINDOWS,
        verify_samples=0,
        weight_only=WeightOnlyTable(method=method, block_size=options.block),
    )
    began = time.perf_counter()
    data = Text(options.text, options.tokenizer, LENGTH)
    result = qcompiler.quantize(options.model, data=data, recipe=recipe, output=output)
    return result.qdq_path, time.perf_counter() - began


def _vocabulary(model: Path, windows: Sequence[Array]) -> int:
    return int(Session(model).run({"input_ids": windows[0][:, :1]})["logits"].shape[-1])


def _predictions(model: Path, windows: Sequence[Array]) -> Iterator[Array]:
    """Logarithms of the probabilities of the next token, float32 [LENGTH - 1, vocabulary] for each window."""
    session = Session(model)
    for ids in windows:
        logits = session.run({"input_ids": ids})["logits"][0, :-1]
        logits = logits - logits.max(axis=-1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _figure(model: Path, windows: Sequence[Array], exact: Array, seconds: float) -> Figure:
    loss = kl = 0.0
    for ids, reference, found in zip(windows, exact, _predictions(model, windows), strict=True):
        loss -= float(found[np.arange(len(found)), ids[0, 1:]].sum(dtype=np.float64))
        wanted = reference.astype(np.float32)
        kl += float((np.exp(wanted) * (wanted - found)).sum(dtype=np.float64))
    tokens = sum(ids.shape[1] - 1 for ids in windows)
    return Figure(loss / tokens, kl / tokens, seconds)


if __name__ == "__main__":
    sys.exit(main())
