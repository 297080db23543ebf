"""Language models in processes of their own.

... language text TEXT OUT              the first half of each file of TEXT, for training and calibration
... language samples MODEL TEXT OUT N   N calibration windows for the model, as .npz
... language plain MODEL SAMPLES ANSWER one pass over the samples with ONNX Runtime, and no more
... language worth MODEL TEXT ANSWER    perplexity on the last fifth of each file of TEXT
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.language.cells import LENGTH

if TYPE_CHECKING:
    from qcompiler.data.tokenizer import Tokenizer
    from qcompiler.ir.signature import Feeds, Inputs
    from qcompiler.runtime.token_feeds import Filler

    Run = Callable[[Feeds], Any]


SHORT = (0.6, 3)  # of the second protocol: where in a file, and how many windows beside each other


def text(source: str, out: str) -> None:
    """Writes the first half of each file, so that nothing behind it can be trained on or calibrated with."""
    files = sorted(Path(source).glob("*.txt"))
    if not files:
        raise SystemExit(f"{source} has no .txt file")
    Path(out).mkdir(parents=True, exist_ok=True)
    for file in files:
        raw = file.read_bytes()
        (Path(out) / file.name).write_bytes(raw[: raw.rindex(b" ", 0, len(raw) // 2)])


def samples(model: str, source: str, out: str, count: str) -> None:
    """Writes calibration windows; they are spread over the files, at places drawn with a fixed seed."""
    from qcompiler.data.text import Text

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    windows = Text(source, Path(model).parent, LENGTH, "all").start(_inputs(_session(Path(model))), int(count))
    for index, feeds in enumerate(windows()):
        arrays: dict[str, Any] = dict(feeds)
        np.savez(folder / f"{index:04}.npz", **arrays)


def plain(model: str, folder: str, answer: str) -> None:
    """Writes the seconds that it takes to load the float model and run it over all samples, one in memory at a time."""
    files = sorted(Path(folder).glob("*.npz"))
    import_module("onnxruntime")
    started = time.perf_counter()
    made = _session(Path(model))
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            made.run(None, {name: stored[name] for name in stored.files})
    Path(answer).write_text(json.dumps({"work_s": time.perf_counter() - started}), encoding="utf8")


def worth(model: str, source: str, answer: str) -> None:
    """Writes perplexity in both protocols; where there is a cache, step by step through it."""
    from qcompiler.data.tokenizer import load_tokenizer
    from qcompiler.runtime.token_feeds import Filler
    from qcompiler.verification import perplexity

    made = _session(Path(model), optimised=not _has_fp8(model))
    inputs = _inputs(made)
    names = [output.name for output in made.get_outputs()]

    def run(feeds: Feeds) -> dict[str, Any]:
        return dict(zip(names, made.run(names, feeds), strict=True))

    tokenizer = Path(answer).parent / "tokenizer.json"
    cached = any(name.startswith("past_key_values") for name in inputs)
    judge = perplexity.metric(source, tokenizer, inputs, length=LENGTH, cached=cached)
    found = {"perplexity": judge(run), "protocol": dict(judge.details)}
    found["short"] = short(run, Path(source), load_tokenizer(tokenizer), Filler(inputs))
    Path(answer).write_text(json.dumps(found), encoding="utf8")


def short(run: Run, source: Path, tokenizer: Tokenizer, filler: Filler) -> float:
    """Geometric mean over the files of the perplexity of a few windows without overlap from 60 % on."""
    from qcompiler.verification import perplexity

    losses = []
    for ids in _short_windows(source, tokenizer):
        window = perplexity.Window(np.array([*tokenizer.before, *ids], np.int64), len(ids) - (not tokenizer.before))
        losses.append(np.log(perplexity.perplexity(run, [window], filler=filler)))
    return float(np.exp(np.mean(losses)))


def _short_windows(source: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    begin, count = SHORT
    size = LENGTH - len(tokenizer.before)
    for file in sorted(source.glob("*.txt")):
        whole = file.read_text(encoding="utf8")
        at = int(len(whole) * begin)
        ids = tokenizer.encode(whole[at : at + 9 * LENGTH * count + 2000])
        yield from (ids[i * size : (i + 1) * size] for i in range(count))


def _session(path: Path, *, optimised: bool = True) -> Any:
    """A session on the CPU as anybody makes it."""
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _has_fp8(path: str) -> bool:
    """Graphs with FP8 pairs are run as they are: the CPU optimiser of ONNX Runtime breaks them."""
    onnx: Any = import_module("onnx")
    low = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)
    return any(one.data_type in low for one in onnx.load(path, load_external_data=False).graph.initializer)


def _inputs(made: Any) -> Inputs:
    """Names, element types and shapes, None for a free size."""
    kinds = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bool)": "bool"}
    return {
        one.name: (np.dtype(kinds[one.type]), tuple(size if isinstance(size, int) else None for size in one.shape))
        for one in made.get_inputs()
    }


if __name__ == "__main__":
    VERBS: dict[str, Callable[..., None]] = {"text": text, "samples": samples, "plain": plain, "worth": worth}
    VERBS[sys.argv[1]](*sys.argv[2:])
