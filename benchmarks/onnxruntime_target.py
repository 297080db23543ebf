"""`--target onnxruntime` beside ONNX Runtime's own quantizer: latency, SQNR and metric, in one process.

    python -m benchmarks.onnxruntime_target MODELS NAME...

MODELS/NAME holds model.onnx and load.py (`calibration_feeds(n)`, `evaluate(run)`). Both quantizers get the same 64
samples of batch 1. Times are the processor time of single-threaded sessions that take turns on the same samples; what
is printed is the median of the ratios to the float model, which other load on the machine hardly moves. A star marks
models that quantize_static cannot take as they are (or whose result does not load): it got them cleaned up and raised
to opset 21 by qcompiler.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qcompiler
from qcompiler.ir import model as models
from qcompiler.numerics.sqnr import power
from qcompiler.passes.pipelines import clean_up
from qcompiler.recipe.recipe import Recipe
from qcompiler.target import Target

Feeds = dict[str, Any]
SAMPLES, ROUNDS = 64, 60
LINEAR = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"]}
FLOAT_OUT = {"extra_options": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}}
U8S8 = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
S8S8 = {**U8S8, "activation_type": QuantType.QInt8}
THEIRS: dict[str, dict[str, Any]] = {
    "quantize_static U8S8": U8S8,
    "quantize_static S8S8": S8S8,
    "quantize_static U8S8, percentile": {**U8S8, "calibrate_method": CalibrationMethod.Percentile},
    "quantize_static U8S8, linear only, float outputs": {**U8S8, **LINEAR, **FLOAT_OUT},
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"load_{path.parent.name.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _singles(loader: Any) -> Iterator[Feeds]:
    for feed in loader.calibration_feeds(SAMPLES):
        for i in range(len(next(iter(feed.values())))):
            yield {name: array[i : i + 1] for name, array in feed.items()}


def _session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _sqnr(reference: Path, path: Path, feeds: list[Feeds]) -> float:
    plain, quantized, signal, noise = _session(reference), _session(path), 0.0, 0.0
    for feed in feeds:
        for a, b in zip(plain.run(None, feed), quantized.run(None, feed), strict=True):
            if a.dtype == np.float32:
                signal, noise = signal + power(a), noise + power(a - b)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def _ratios(paths: dict[str, Path], feeds: list[Feeds]) -> dict[str, float]:
    sessions = {name: _session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    names = list(paths)
    for i in range(ROUNDS):
        feed = feeds[i % len(feeds)]
        for name in names[i % len(names) :] + names[: i % len(names)]:
            sessions[name].run(None, feed)  # brings its weights into the caches
            started = time.process_time()
            sessions[name].run(None, feed)
            sessions[name].run(None, feed)
            times[name].append(time.process_time() - started)
    return {name: statistics.median(a / b for a, b in zip(times["float"], times[name], strict=True)) for name in names}


def _compare(folder: Path, work: Path) -> None:
    loader, source = _load(folder / "load.py"), folder / "model.onnx"
    feeds = list(islice(_singles(loader), SAMPLES))
    paths = {"float": source}
    ours = work / "ours.onnx"
    result = qcompiler.quantize(source, data=feeds, recipe=Recipe(target="onnxruntime"), output=ours)
    paths["qcompiler"] = ours
    prepared = work / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(prepared))
    except Exception:  # symbolic shape inference gives up on some models
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    cleaned = work / "cleaned.onnx"
    normal = models.load(source)
    clean_up(Target("tensorrt", opset=21))(normal.graph)
    models.save(normal, cleaned)
    for i, (name, options) in enumerate(THEIRS.items()):
        path = work / f"theirs{i}.onnx"
        for text, float_model in ((name, prepared), (f"{name} *", cleaned)):
            try:
                quantize_static(str(float_model), str(path), _Reader(feeds), **options)
                _session(path)
            except Exception as error:  # of any kind, from any layer; it is the result then
                print(f"{folder.name}: {text}: {type(error).__name__}", file=sys.stderr)
                continue
            paths[text] = path
            break
    ratios = _ratios(paths, feeds[:16])
    for name, path in paths.items():
        session = _session(path, os.cpu_count() or 1)
        metric = loader.evaluate(lambda feed, session=session: session.run(None, feed))
        sqnr = "" if name == "float" else f"{_sqnr(source, path, feeds[:16]):.1f}"
        print(f"| {folder.name} | {name} | {ratios[name]:.2f} | {sqnr} | {metric:.4f} |", flush=True)
    print(f"| {folder.name} | share of MACs in INT8: {result.plan.share():.0%} | | | |", flush=True)


def main() -> None:
    """Prints a table row per model and quantizer."""
    print("| model | quantizer | speed over float | SQNR dB | metric |\n|---|---|---|---|---|", flush=True)
    for name in sys.argv[2:]:
        with TemporaryDirectory() as work:
            _compare(Path(sys.argv[1]) / name, Path(work))


if __name__ == "__main__":
    main()
