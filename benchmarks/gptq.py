"""GPTQ of qcompiler beside that of ONNX Runtime: the same weights, the same Hessians, one process.

    python -m benchmarks.gptq MODEL.onnx TOKENIZER --text DIR [--block N] [--layers N]

MODEL takes input_ids and gives logits, without a cache. Its products are grouped by the size of their weight; of each
group the first, the middle and the last layer are rounded to INT4 in blocks, by each implementation in turn. 32 windows
of 256 tokens from the first 80 % of each text make the Hessians, which both get; 32 from the last 20 % make those that
the errors on unseen text are taken with. Reported by size and way: seconds for a layer, the median; the error of the
layer's output, tr(EᵀHE) / tr(WᵀHW) in dB, mean over the layers, on the calibrated windows and on the unseen ones.

ONNX Runtime's is `onnxruntime.quantization.neural_compressor.weight_only.gptq`, symmetric as TensorRT needs it: as it
is called by default; with `mse`, its search of scales; with `actorder`. Both get 1 % damping. Ours: as `qcompiler`
calls it, and without the coordinate descent (`sweeps=0`). ONNX Runtime's scales are any FP32 numbers, ours are numbers
of FP16. What rounding to nearest leaves stands below them, to see what each gains.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import BenchmarkError
from qcompiler.data.text import feeds
from qcompiler.errors import QCompilerError
from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.numerics import blocks
from qcompiler.statistics import hessian
from qcompiler.weight_only import gptq

LENGTH, WINDOWS, DAMP = 256, 32, 0.01
PER_SIZE = 3
OURS, PAPER, NEAREST = "qcompiler", "qcompiler, without descent", "nearest integers"
THEIRS = {
    "ONNX Runtime": {},
    "ONNX Runtime, mse": {"mse": True},
    "ONNX Runtime, actorder": {"actorder": True},
}
Array = Any
Way = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Layer:
    """A product with a constant weight [K, N], and the activation that it reads."""

    name: str
    activation: str
    weight: Array


@dataclass(frozen=True)
class Figure:
    """One layer by one way: seconds, and the output's error as a power on calibrated and on unseen windows."""

    seconds: float
    seen: float
    unseen: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 0: done, 1: something did not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gptq", description="GPTQ beside ONNX Runtime's.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="input_ids to logits, without a cache")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="tokenizer.json or its folder")
    parser.add_argument("--text", type=Path, required=True, metavar="DIR", help="UTF-8 .txt files")
    parser.add_argument("--block", type=int, choices=(32, 64), default=32, help="input channels of a scale")
    parser.add_argument("--layers", type=int, default=PER_SIZE, metavar="N", help="of each size (default: 3)")
    options = parser.parse_args(arguments)
    try:
        ways = implementations(options.block)
        print("\n".join(table(_measure(options, ways))))
    except (BenchmarkError, QCompilerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def implementations(block: int) -> dict[str, Way]:
    """By title, what makes of a weight [K, N] and a Hessian [K, K] the weight that is left, float32 [K, N].

    Raises:
        BenchmarkError: ONNX Runtime's cannot be imported.
    """
    try:
        from onnxruntime.quantization.neural_compressor.weight_only import gptq as theirs
    except ImportError as error:
        raise BenchmarkError(f"ONNX Runtime's GPTQ cannot be imported ({error}): pip install onnx-ir") from error

    def ours(sweeps: int) -> Way:
        def rounded(w: Array, h: Array) -> Array:
            found = gptq.gptq(w, h, size=block, format="int4", damp=DAMP, sweeps=sweeps)
            return blocks.dequantize(found)

        return rounded

    def peer(settings: Mapping[str, bool]) -> Way:
        # It writes into what it is given.
        return lambda w, h: np.asarray(
            theirs(w.copy(), h.copy(), num_bits=4, group_size=block, scheme="sym", percdamp=DAMP, **settings),
            np.float32,
        )

    found = {OURS: ours(gptq.SWEEPS), PAPER: ours(0)}
    found |= {title: peer(settings) for title, settings in THEIRS.items()}
    return {**found, NEAREST: lambda w, _: blocks.dequantize(blocks.round_to_nearest(w, block, "int4"))}


def layers(model: models.Model, most: int) -> dict[tuple[int, int], list[Layer]]:
    """The products by the size of their weight, at most `most` of each size, spread over the model.

    A size that is four times as wide as deep is a table of logits, which no recipe stores in four bits.
    """
    sizes: dict[tuple[int, int], list[Layer]] = {}
    for node in model.graph.nodes:
        weight = linear.matrix(node) if node.op in ("MatMul", "Gemm") else None
        if weight is None or weight.shape[1] > 4 * weight.shape[0] or node.attrs.get("transA", 0):
            continue
        sizes.setdefault(weight.shape, []).append(Layer(node.name, node.inputs[0].name, weight))
    if not sizes:
        raise BenchmarkError("the model has no product with a constant weight")
    places = {
        size: np.unique(np.linspace(0, len(found) - 1, most).round().astype(int)) for size, found in sizes.items()
    }
    return {size: [found[int(place)] for place in places[size]] for size, found in sizes.items()}


def figures(
    chosen: Iterable[Layer], ways: Mapping[str, Way], seen: Mapping[str, Array], unseen: Mapping[str, Array]
) -> dict[str, list[Figure]]:
    """Each way on each layer, the ways in turn so that a busy machine slows all of them."""
    found: dict[str, list[Figure]] = {title: [] for title in ways}
    for layer in chosen:
        for title, way in ways.items():
            began = time.perf_counter()
            left = way(layer.weight, seen[layer.activation])
            seconds = time.perf_counter() - began
            errors = (error(layer.weight, one[layer.activation], left - layer.weight) for one in (seen, unseen))
            found[title].append(Figure(seconds, *errors))
    return found


def error(w: Array, hessian: Array, difference: Array) -> float:
    """Σ |xᵀ·difference|² / Σ |xᵀ·w|² over the rows that made the Hessian: what a layer's output errs, as a power.

    Args:
        w: the float weight [K, N].
        hessian: [K, K].
        difference: what was stored less `w`, [K, N].
    """
    h = hessian.astype(np.float32)
    signal, noise = (float(np.vdot(one, h @ one)) for one in (w, difference))
    return max(noise, 0.0) / signal if signal > 0 else 0.0


def table(measured: Iterable[tuple[tuple[int, int], Mapping[str, Sequence[Figure]]]]) -> Iterator[str]:
    """Lines of Markdown, a row for each size and way."""
    yield "| weight | layers | way | seconds a layer | of ONNX Runtime's time | error, calibrated | unseen |"
    yield "|---|---|---|---|---|---|---|"
    for (depth, width), rows in measured:
        theirs = statistics.median(one.seconds for one in rows[next(iter(THEIRS))])
        for title, found in rows.items():
            seconds = statistics.median(one.seconds for one in found)
            seen, unseen = (np.mean([_decibels(getattr(one, at)) for one in found]) for at in ("seen", "unseen"))
            yield (
                f"| {depth} x {width} | {len(found)} | {title} | {seconds:.3f} | {seconds / theirs:.2f} | "
                f"{seen:.2f} dB | {unseen:.2f} dB |"
            )


def _decibels(power: float) -> float:
    return float(10 * np.log10(max(power, 1e-30)))


def _measure(
    options: argparse.Namespace, ways: Mapping[str, Way]
) -> Iterator[tuple[tuple[int, int], dict[str, list[Figure]]]]:
    model = models.load(options.model)
    sizes = layers(model, options.layers)
    depths = {layer.activation: len(layer.weight) for found in sizes.values() for layer in found}
    seen, unseen = (_hessians(model, depths, options, part) for part in ("calibration", "evaluation"))
    # What numba compiles, and what a thread pool allocates at its first use, is not GPTQ's cost.
    first = next(iter(sizes.values()))[:1]
    figures(first, ways, seen, unseen)
    for size, chosen in sizes.items():
        yield size, figures(chosen, ways, seen, unseen)


def _hessians(
    model: models.Model, depths: Mapping[str, int], options: argparse.Namespace, part: str
) -> dict[str, Array]:
    inputs = {"input_ids": (np.dtype(np.int64), ("batch", "length"))}
    source = feeds(options.text, options.tokenizer, inputs, length=LENGTH, samples=WINDOWS, part=part)
    (found,) = hessian.hessians(model, depths, source(), budget=sum(8 * depth**2 for depth in depths.values()))
    return {name: moments.hessian for name, (moments,) in found.items()}


if __name__ == "__main__":
    sys.exit(main())
