"""Judges one quantized model: `... evaluate MODEL_FOLDER QUANTIZED.onnx SAMPLE.npz ANSWER.json [FLOAT_METRIC]`.

Runs in the environment of the models, whose load.py has the task.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children.common import Feeds
from benchmarks.children.limit import session
from benchmarks.children.loader import open_loader

Run = Callable[[Feeds], list[Any]]
SECONDS, WARM_UP, LEAST, MOST = 2.0, 3, 15, 101


class Noise:
    """Signal and error power of every float output, summed over all feeds that go by."""

    def __init__(self, names: list[str], reference: Run, judged: Run) -> None:
        """`reference` and `judged` return outputs in the order of `names`."""
        self._names, self._reference, self._judged = names, reference, judged
        self._sums: dict[str, tuple[float, float]] = {}

    def __call__(self, feeds: Feeds) -> list[Any]:
        """Runs both models and returns what the judged one says."""
        outputs = self._judged(feeds)
        for name, x, y in zip(self._names, self._reference(feeds), outputs, strict=True):
            if not np.issubdtype(np.asarray(x).dtype, np.floating):
                continue
            a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
            signal, error = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (signal + float((a * a).sum()), error + float(((a - b) ** 2).sum()))
        return outputs

    def sqnr_db(self) -> dict[str, float | None]:
        """10·log10(Σx² / Σ(x − y)²) of each output; None: not finite, or no error at all."""
        return {name: _decibel(signal, error) for name, (signal, error) in self._sums.items()}


def _decibel(signal: float, error: float) -> float | None:
    if not (math.isfinite(error) and signal > 0 and error > 0):
        return None
    return 10 * math.log10(signal / error)


def latency(reference: Run, judged: Run, feeds: Feeds) -> dict[str, float]:
    """Medians in ms and the median of judged/reference; the two take turns, so that a busy machine hits both."""

    def milliseconds(run: Run) -> float:
        started = time.perf_counter()
        run(feeds)
        return (time.perf_counter() - started) * 1e3

    first = [(milliseconds(reference), milliseconds(judged)) for _ in range(WARM_UP)][-1]
    rounds = min(MOST, max(LEAST, int(SECONDS * 1e3 / sum(first))))
    pairs = np.array([(milliseconds(reference), milliseconds(judged)) for _ in range(rounds)])
    float_ms, quantized_ms = np.median(pairs, axis=0)
    ratio = float(np.median(pairs[:, 1] / pairs[:, 0]))
    return {"float_ms": float(float_ms), "quantized_ms": float(quantized_ms), "ratio": ratio}


def int8_share(path: Path, feeds: Feeds) -> float | None:
    """Share of MACs with two low-precision inputs, by the counter that comes with the models; None without one."""
    try:
        counter: Any = import_module("workloads.macs")  # load.py has put its folder on the path
    except ModuleNotFoundError:
        return None
    return float(counter.count_macs(path, feeds).share())


def main(folder: Path, quantized: Path, sample: Path, answer: Path, float_metric: float | None) -> None:
    """Writes metric, SQNR, latency, share of MACs and the runtime's version as JSON."""
    loader = open_loader(folder)
    float_session, quantized_session = session(str(folder / "model.onnx")), session(str(quantized))
    names = [output.name for output in float_session.get_outputs()]

    def reference(feeds: Feeds) -> list[Any]:
        return list(float_session.run(names, feeds))

    def judged(feeds: Feeds) -> list[Any]:
        return list(quantized_session.run(names, feeds))

    with np.load(sample, allow_pickle=False) as stored:
        feeds = dict(stored)
    noise = Noise(names, reference, judged)
    result = {
        "metric_name": loader.METRIC,
        "higher_is_better": loader.HIGHER_IS_BETTER,
        "metric_float": float(loader.evaluate(reference)) if float_metric is None else float_metric,
        "metric": float(loader.evaluate(noise)),
        "sqnr_db": noise.sqnr_db(),
        "latency": latency(reference, judged, feeds),
        "int8_share": int8_share(quantized, feeds),
        "onnxruntime": version("onnxruntime"),
    }
    answer.write_text(json.dumps(result), encoding="utf8")


if __name__ == "__main__":
    FOLDER, QUANTIZED, SAMPLE, ANSWER = map(Path, sys.argv[1:5])
    main(FOLDER, QUANTIZED, SAMPLE, ANSWER, float(sys.argv[5]) if len(sys.argv) > 5 else None)
