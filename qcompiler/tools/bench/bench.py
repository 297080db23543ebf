"""`qcompiler bench`: latency and throughput of several models side by side, in one run.

Every model lives in a process of its own, and the processes take turns: in each round every model is measured once for
every case, and a round begins with another model than the one before it. So what disturbs the machine for a while
disturbs all models alike, and ratios are made within rounds (`timings`).

Ordinary models are run on one feed again and again. Decoders (`ir.decoder_io`) read a prompt and then write token by
token: the prefill is the time to the first token, the decode the time between tokens. A decoder without a cache reads
the whole text anew for every token; that is what is timed, and it is marked as such.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.source import Data, open_source
from qcompiler.engines.onnxruntime import OnnxRuntime
from qcompiler.errors import ModelError, UsageError
from qcompiler.ir import decoder_io
from qcompiler.ir.decoder_io import Decoder
from qcompiler.ir.signature import Feeds, Inputs, in_float32
from qcompiler.report import manifest
from qcompiler.support import machine
from qcompiler.support.as_json import plain
from qcompiler.support.machine import available_processors
from qcompiler.support.progress import Progress, silent
from qcompiler.target import parse_target
from qcompiler.tools.bench import timings
from qcompiler.tools.bench.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.recipe.checks import Shapes


SCHEMA = 1
BURST_S = 0.05  # runs of an ordinary model, or of a prompt, are repeated within a round until they take so long
BURST_MOST = 200
VOCABULARY = 1000  # tokens are drawn from so many where the model does not say how many it knows


@dataclass(frozen=True)
class Case:
    """One point of operation: so many samples or texts at a time; for decoders, the tokens of a prompt."""

    batch: int
    prompt: int | None = None

    def __str__(self) -> str:
        """Words for progress and messages."""
        return f"batch {self.batch}" + ("" if self.prompt is None else f", prompt {self.prompt}")


@dataclass(frozen=True)
class Bench:
    """What was measured, as plain data; `docs/guide/bench.md` explains the keys.

    Attributes:
        kind: `decoder` or `ordinary`.
        models: one entry for each model: file, engine, size, memory.
        cases: one entry for each batch size (and prompt), with the figures of each model.
        settings: rounds, warm-up, threads, the order of the models in each round.
        environment: versions, processor, load of the machine at the start.
    """

    kind: str
    models: tuple[Mapping[str, Any], ...]
    cases: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        listed = {name: getattr(self, name) for name in ("kind", "settings", "environment", "models", "cases")}
        return dict(plain({"schema": SCHEMA, **listed}))


@dataclass
class _Measured:
    """One model at one case: a list for each round."""

    prefill: list[list[float]] = field(default_factory=list)
    decode: list[list[float]] = field(default_factory=list)
    latency: list[list[float]] = field(default_factory=list)
    chosen: list[tuple[int, list[int]]] = field(default_factory=list)


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    data: Data | None = None,
    shapes: Shapes | None = None,
    batches: Sequence[int] = (1,),
    prompts: Sequence[int] = (128,),
    generate: int = 32,
    rounds: int = 10,
    warmup: int = 1,
    seconds: float = 60.0,
    threads: int = 0,
    provider: str = "cpu",
    target: str = "tensorrt-rtx",
    progress: Progress | None = None,
) -> Bench:
    """Times models against the first of them.

    Args:
        models: ONNX files, which run in ONNX Runtime, and engines, which need their GPU. They must take the same
            inputs; the first is what the others are compared with, usually the float model.
        data: feeds for ordinary models; for decoders, where tokens are taken from. None: random numbers.
        shapes: of the inputs of an ordinary model, if it has free axes other than the batch and there is no data; the
            middle one of each three is used.
        batches: samples, or texts, at a time.
        prompts: tokens that are read at once (decoders only).
        generate: tokens of an answer, at least 1; the first one comes from the prefill.
        rounds: how often each model is measured; fewer if the time is up.
        warmup: unmeasured runs of each model and case before that.
        seconds: time for the rounds; the round that has begun is always finished.
        threads: of one operator in ONNX Runtime; 0 for one per processor that this process may use.
        provider: `cpu` or `cuda`, for ONNX Runtime.
        target: whose engines files other than ONNX are, where no manifest beside them says so.
        progress: where stages are shown.

    Raises:
        UsageError: a number is out of range, or the models cannot be compared.
        ModelError: a file is missing, or cannot take a batch or a length.
        DataError: the data does not fit.
        EngineError: an engine or a provider cannot run here.
    """
    paths = [Path(one) for one in ([models] if isinstance(models, str | Path) else models)]
    _check(paths, batches, prompts, generate, rounds, warmup, seconds, threads)
    shown, used = progress or silent, threads or available_processors()
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcompiler-bench-")))
        workers = [
            stack.enter_context(Worker(name, path, _engine(path, target), provider, used))
            for name, path in zip(_names(paths), paths, strict=True)
        ]
        with shown.stage("open", len(workers)) as stage:
            for worker in workers:
                worker.open()
                stage.advance()
        known = _decoders(workers)
        if known:
            cases = [Case(batch, prompt) for prompt in prompts for batch in batches]
            source, files = _texts(workers[0], known[0], cases, generate, data, folder)
        else:
            cases = [Case(batch) for batch in batches]
            source, files = _feeds(workers, cases, data, shapes, folder)
        bursts = _warm(workers, cases, files, warmup, shown)
        measured, order = _rounds(workers, cases, files, bursts, rounds, seconds, shown)
        return Bench(
            kind="decoder" if known else "ordinary",
            models=tuple(_model(worker, known[i] if known else None) for i, worker in enumerate(workers)),
            cases=tuple(_case(case, workers, measured, known, generate) for case in cases),
            settings={
                "rounds": len(order),
                "rounds_asked": rounds,
                "warmup": warmup,
                "seconds": seconds,
                "threads": used,
                "data": source,
                "generate": generate if known else None,
                "order": [[workers[i].name for i in one] for one in order],
            },
            environment={**machine.environment(), "load_average": None if load is None else round(load[0], 2)},
        )


def _check(
    paths: Sequence[Path],
    batches: Sequence[int],
    prompts: Sequence[int],
    generate: int,
    rounds: int,
    warmup: int,
    seconds: float,
    threads: int,
) -> None:
    for path in paths:
        if not path.is_file():
            raise ModelError(f"there is no model file '{path}': check the path")
    least = {"generate": (generate, 1), "rounds": (rounds, 1), "warmup": (warmup, 0), "threads": (threads, 0)}
    least |= {f"batch {value}": (value, 1) for value in batches} | {f"prompt {value}": (value, 1) for value in prompts}
    for name, (value, low) in least.items():
        if value < low:
            raise UsageError(f"{name} must be at least {low}, not {value}")
    if not paths or not batches or not prompts:
        raise UsageError("there is nothing to measure: give at least one model, one batch and one prompt length")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"the time must be a positive number of seconds, not {seconds}")


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many folders as it takes to tell them apart; files that are given twice get a number."""
    if len(set(paths)) < len(paths):
        return [f"{path.name} ({i + 1})" for i, path in enumerate(paths)]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _engine(path: Path, target: str) -> str:
    """Which engine a file is for: ONNX files are ONNX Runtime's; of others the manifest beside them knows."""
    if path.suffix == ".onnx":
        return OnnxRuntime.name
    beside = path.with_name(f"{path.stem}.manifest.json")
    if beside.is_file():
        return str((manifest.read(beside).get("engine") or {}).get("engine") or parse_target(target).engine)
    return parse_target(target).engine


def _decoders(workers: Sequence[Worker]) -> list[Decoder]:
    """What is known of each model as a decoder; empty if they are ordinary models.

    Raises:
        UsageError: there are both.
    """
    found = [
        decoder_io.detect(one.inputs, {name: shape for name, (_, shape) in one.outputs.items()}) for one in workers
    ]
    known = [one for one in found if one is not None]
    if known and len(known) < len(found):
        names = [worker.name for worker, one in zip(workers, found, strict=True) if one is None]
        raise UsageError(
            f"'{names[0]}' is not a decoder with '{decoder_io.TOKENS}' and '{decoder_io.LOGITS}', and others are: they "
            "cannot be compared; bench them one by one"
        )
    return known


def _texts(
    worker: Worker, decoder: Decoder, cases: Sequence[Case], generate: int, data: Data | None, folder: Path
) -> tuple[str, dict[Case, Path]]:
    """Tokens [batch, prompt + answer] for each case, as files."""
    last = (worker.outputs[decoder_io.LOGITS][1] or (None,))[-1]
    rng = np.random.default_rng(0)
    stream, source = None, "random tokens"
    if data is not None:
        opened = open_source(data, worker.inputs, samples=max(case.batch for case in cases))
        stream, source = np.concatenate([feeds[decoder_io.TOKENS].reshape(-1) for feeds in opened]), opened.name
    files = {}
    for case in cases:
        size = (case.batch, (case.prompt or 0) + generate)
        vocabulary = last if isinstance(last, int) else VOCABULARY
        tokens = rng.integers(0, vocabulary, size) if stream is None else np.resize(stream, size)
        files[case] = _save(folder, {"tokens": tokens.astype(np.int64)})
    return source, files


def _feeds(
    workers: Sequence[Worker], cases: Sequence[Case], data: Data | None, shapes: Shapes | None, folder: Path
) -> tuple[str, dict[Case, Path]]:
    """One feed for each batch size, as files."""
    inputs = workers[0].inputs
    for other in workers[1:]:
        if set(other.inputs) != set(inputs):
            raise UsageError(
                f"'{other.name}' takes {', '.join(other.inputs)}, but '{workers[0].name}' takes {', '.join(inputs)}: "
                "models that are compared must take the same inputs"
            )
    files = {}
    wide, stored = in_float32(inputs)  # what each model takes, its own process makes of it
    source = "random numbers" if data is None else open_source(data, wide, stored=stored).name
    for case in cases:
        if data is None:
            feeds = _random(inputs, case.batch, shapes or {})
        else:
            feeds = next(iter(open_source(data, wide, batch=case.batch, stored=stored)))
        files[case] = _save(folder, _sized(feeds, inputs, case.batch, workers[0].name))
    return source, files


def _save(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    path = folder / f"{sum(1 for _ in folder.iterdir())}.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _random(inputs: Inputs, batch: int, shapes: Shapes) -> Feeds:
    rng = np.random.default_rng(0)
    found: Feeds = {}
    for name, (dtype, declared) in inputs.items():
        given = shapes[name][1] if name in shapes else declared
        if dtype is None or dtype.kind == "O" or given is None:
            raise UsageError(f"input '{name}' is none that random numbers can be made for: give --data")
        if any(not isinstance(size, int) for size in given[1:]):
            spelled = "x".join(str(size) if isinstance(size, int) else "?" for size in given)
            raise UsageError(
                f"input '{name}' is {spelled}, and nothing says how large the free sizes are: give --data, or --shapes "
                f"{name}=..."
            )
        size = [size if isinstance(size, int) else batch for size in given]
        drawn = rng.standard_normal(size, np.float32) if dtype.kind in "fV" else np.ones(size, np.int64)
        found[name] = drawn if dtype.kind in "fV" else drawn.astype(dtype)
    return found


def _sized(feeds: Feeds, inputs: Inputs, batch: int, name: str) -> Feeds:
    """The feed with `batch` rows wherever an input's first axis is free: rows are repeated or left out."""
    free = [one for one, (_, shape) in inputs.items() if shape and not isinstance(shape[0], int)]
    fixed = {shape[0] for _, shape in inputs.values() if shape and isinstance(shape[0], int)}
    if not free and inputs and fixed != {batch}:
        raise ModelError(f"'{name}' takes batches of {min(fixed, default=1)} only, not of {batch}: choose --batch so")
    return {one: np.resize(array, (batch, *array.shape[1:])) if one in free else array for one, array in feeds.items()}


def _warm(
    workers: Sequence[Worker], cases: Sequence[Case], files: Mapping[Case, Path], warmup: int, progress: Progress
) -> dict[tuple[int, Case], int]:
    """Runs everything once or more; returns how many runs, or readings of a prompt, fill a burst."""
    bursts = {}
    with progress.stage("warm up", len(workers) * len(cases)) as stage:
        for case, (i, worker) in itertools.product(cases, enumerate(workers)):
            stage.note(f"{worker.name}, {case}")
            taken = BURST_S
            for _ in range(warmup):
                taken = _once(worker, case, files[case], 1)
            if taken < BURST_S:
                taken = _once(worker, case, files[case], 2)  # the very first run may have been slower than any other
            bursts[i, case] = min(max(math.ceil(BURST_S / taken), 1), BURST_MOST)
            stage.advance()
    return bursts


def _once(worker: Worker, case: Case, feeds: Path, count: int) -> float:
    """Seconds of the last of so many runs, or of readings of the prompt."""
    if case.prompt is None:
        return worker.infer(feeds, count)[-1]
    return float(worker.write(feeds, case.prompt, count)["prefill"][-1])


def _rounds(
    workers: Sequence[Worker],
    cases: Sequence[Case],
    files: Mapping[Case, Path],
    bursts: Mapping[tuple[int, Case], int],
    rounds: int,
    seconds: float,
    progress: Progress,
) -> tuple[dict[tuple[int, Case], _Measured], list[list[int]]]:
    """Measures in turns until all rounds are done or the next one would take too long."""
    found = {(i, case): _Measured() for case in cases for i in range(len(workers))}
    order: list[list[int]] = []
    started = time.perf_counter()
    with progress.stage("measure", rounds * len(cases) * len(workers)) as stage:
        for turn in _turns(len(workers), rounds):
            for case, i in itertools.product(cases, turn):
                stage.note(f"round {len(order) + 1}: {workers[i].name}, {case}")
                _measure(workers[i], case, files[case], bursts[i, case], found[i, case])
                stage.advance()
            order.append(turn)
            passed = time.perf_counter() - started
            if passed * (1 + 1 / len(order)) > seconds:
                break
    return found, order


def _turns(models: int, rounds: int) -> Iterator[list[int]]:
    """The order of the models in each round: each goes first, second, ... equally often."""
    for turn in range(rounds):
        yield [(turn + i) % models for i in range(models)]


def _measure(worker: Worker, case: Case, feeds: Path, count: int, into: _Measured) -> None:
    if case.prompt is None:
        into.latency.append(worker.infer(feeds, count))
        return
    told = worker.write(feeds, case.prompt, count)
    into.prefill.append(told["prefill"])
    into.decode.append(told["decode"])
    into.chosen = list(zip(told["positions"], zip(*told["chosen"], strict=True), strict=True))  # type: ignore[arg-type]


def _model(worker: Worker, decoder: Decoder | None) -> dict[str, Any]:
    cache = None if decoder is None else decoder.to_json()
    data = worker.path.with_suffix(".data")
    size = worker.path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    return {
        "name": worker.name,
        "engine": worker.engine,
        "runs_on": worker.where,
        "version": worker.version,
        "bytes": size,
        "open_seconds": round(worker.open_s, 3),
        "peak_memory_mb": None if worker.peak_memory_mb is None else round(worker.peak_memory_mb, 1),
        "decode": None if decoder is None else "cache" if decoder.pairs else "rerun",
        "cache_bytes_per_token": None if cache is None else cache["bytes_per_token"],
    }


def _case(
    case: Case,
    workers: Sequence[Worker],
    measured: Mapping[tuple[int, Case], _Measured],
    known: Sequence[Decoder],
    generate: int,
) -> dict[str, Any]:
    first = measured[0, case]
    results = []
    for i, worker in enumerate(workers):
        mine = measured[i, case]
        before = first if i else None
        row: dict[str, Any] = {"model": worker.name}
        row |= _written(mine, before, case, generate) if known else _ran(mine, before, case)
        plain_ = {name: one.to_json() if isinstance(one, timings.Figure) else one for name, one in row.items()}
        if plain_.get("decode"):
            plain_["decode"]["rerun"] = not known[i].pairs
        results.append(plain_)
    return {"batch": case.batch, "prompt": case.prompt, "results": results}


def _ran(mine: _Measured, first: _Measured | None, case: Case) -> dict[str, Any]:
    def rate(one: _Measured) -> list[float]:
        return [case.batch / float(np.median(burst)) for burst in one.latency]

    return {
        "latency": timings.seconds(mine.latency, None if first is None else first.latency),
        "throughput": timings.rates(rate(mine), None if first is None else rate(first), "samples/s"),
    }


def _written(mine: _Measured, first: _Measured | None, case: Case, generate: int) -> dict[str, Any]:
    def rate(one: _Measured) -> list[float]:
        """Tokens a second of whole answers, the prompt's reading included; from medians, as the other figures are."""
        pairs = zip(one.prefill, one.decode, strict=True)
        rest = generate - 1
        return [case.batch * generate / (np.median(p) + (np.median(d) * rest if d else 0.0)) for p, d in pairs]

    decodes = any(mine.decode)
    found: dict[str, Any] = {"prefill": timings.seconds(mine.prefill, None if first is None else first.prefill)}
    found["decode"] = (
        timings.seconds(mine.decode, None if first is None else first.decode, "s/token") if decodes else None
    )
    found["throughput"] = timings.rates(rate(mine), None if first is None else rate(first), "tokens/s")
    found["same_tokens"] = None if first is None else timings.agreement(mine.chosen, first.chosen)
    return found


def to_text(found: Bench) -> str:
    """The JSON text of a result."""
    return json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
