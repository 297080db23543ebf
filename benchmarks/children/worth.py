"""What a quantized model is worth, without its speed: `... worth FOLDER QUANTIZED.onnx ANSWER.json [FLOAT_METRIC]`.

FOLDER has model.onnx and either load.py (a task with a metric) or eval/ (feeds only). Runs in the environment of the
models.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.children.common import Feeds, Samples
from benchmarks.children.evaluate import Noise, int8_share
from benchmarks.children.loader import open_loader

# The CPU optimiser of ONNX Runtime breaks graphs with FP8 pairs; the float models stand beside them as usual
FP8 = ("FLOAT8E4M3FN", "FLOAT8E5M2")


def main(folder: Path, quantized: Path, answer: Path, float_metric: float | None) -> None:
    """Writes metric (with load.py), SQNR of every float output over the evaluation's feeds, and share of MACs."""
    reference, names = _run(folder / "model.onnx")
    judged, _ = _run(quantized)
    noise = Noise(names, reference, judged)
    if (folder / "load.py").exists():
        loader = open_loader(folder)
        result = {
            "metric_name": loader.METRIC,
            "higher_is_better": loader.HIGHER_IS_BETTER,
            "metric_float": float(loader.evaluate(reference)) if float_metric is None else float_metric,
            "metric": float(loader.evaluate(noise)),
            "int8_share": int8_share(quantized, next(iter(loader.calibration_feeds(1)))),
        }
    else:
        result = {}
        for feeds in Samples(folder / "eval", len(list((folder / "eval").glob("*.npz")))):
            noise(feeds)
    answer.write_text(json.dumps({**result, "sqnr_db": noise.sqnr_db()}), encoding="utf8")


def _run(path: Path) -> tuple[Any, list[str]]:
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if _has_fp8(path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> list[Any]:
        return list(session.run(names, feeds))

    return run, names


def _has_fp8(path: Path) -> bool:
    onnx: Any = import_module("onnx")
    low = {getattr(onnx.TensorProto, name) for name in FP8}
    graph = onnx.load(str(path), load_external_data=False).graph
    return any(tensor.data_type in low for tensor in graph.initializer)


if __name__ == "__main__":
    FOLDER, QUANTIZED, ANSWER = map(Path, sys.argv[1:4])
    main(FOLDER, QUANTIZED, ANSWER, float(sys.argv[4]) if len(sys.argv) > 4 else None)
