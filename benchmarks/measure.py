"""One cell: limit pass, quantizer, limit pass, ... each in a fresh process, then what the quantized model is worth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import peers, process
from benchmarks.children.order import Order
from benchmarks.results import Outcome, Run, machine
from benchmarks.subjects import SUBJECTS, Cell, Subject

PEER_BUDGET_S = 12.0  # no further repeat of a peer after so many seconds: the slow ones differ by factors anyway
LIMIT = "ort"  # whose environment runs the plain pass: the leanest one, so the hardest to come near to


class BenchmarkError(Exception):
    """The benchmark itself cannot go on; what a quantizer does wrong is a result instead."""


@dataclass(frozen=True)
class Bench:
    """Where things are.

    Attributes:
        models: Folder with NAME/model.onnx and NAME/load.py, and the environment of the loaders in .venv.
        cache: Folder for samples and the float models' metrics.
    """

    models: Path
    cache: Path

    def model(self, name: str) -> Path:
        """The float model of that name.

        Raises:
            BenchmarkError: There is none.
        """
        path = self.models / name / "model.onnx"
        if not path.is_file() or not path.with_name("load.py").is_file():
            raise BenchmarkError(f"{path.parent} has no model.onnx with a load.py; --models names the folder above")
        return path

    @property
    def loader_python(self) -> Path:
        """The Python that runs load.py."""
        own = self.models / ".venv" / "bin" / "python"
        return own if own.exists() else Path(sys.executable)

    def samples(self, name: str, count: int) -> Path:
        """A folder with at least `count` feeds of batch 1, written when it is first asked for."""
        folder = self.cache / "samples" / name
        if sum(1 for _ in folder.glob("*.npz")) >= count:
            return folder
        print(f"{name}: writing {count} samples", flush=True)
        fresh = folder.with_name(f"{name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._loader("write_samples", str(self.model(name).parent), str(fresh), str(count))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        return folder

    def evaluate(self, name: str, quantized: Path) -> dict[str, Any]:
        """Accuracy and latency, as `benchmarks.children.evaluate` writes them."""
        float_model = self.model(name)
        known = self.cache / "float" / f"{name}.{digest(float_model)[:16]}.json"
        answer = quantized.with_name("evaluation.json")
        sample = next(iter(sorted(self.samples(name, 1).glob("*.npz"))))
        arguments = [str(float_model.parent), str(quantized), str(sample), str(answer)]
        if known.is_file():
            arguments.append(known.read_text(encoding="utf8"))
        self._loader("evaluate", *arguments)
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf8"))
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(repr(result["metric_float"]), encoding="utf8")
        return result

    def _loader(self, child: str, *arguments: str) -> None:
        command = [str(self.loader_python), "-m", f"benchmarks.children.{child}", *arguments]
        environment = {**os.environ, **process.QUIET}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BenchmarkError(f"{child} {' '.join(arguments[:2])}: {last[:500]}")


def measure(bench: Bench, cell: Cell, before: Run | None = None) -> tuple[Outcome, Run]:
    """Measures one cell; `before` is a limit pass of the same model and samples that has just been run.

    Returns:
        The outcome and its last limit pass.

    Raises:
        BenchmarkError: A limit pass failed, or an environment is missing.
    """
    subject = SUBJECTS[cell.subject]
    for peer in {LIMIT, subject.peer or LIMIT}:
        if not peers.ready(peer):
            raise BenchmarkError(f"the environment of {peer} is not there: python -m benchmarks peers {peer}")
    model, samples = bench.model(cell.model), bench.samples(cell.model, cell.samples)
    outcome = Outcome(cell, machine(), datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        outcome.limits.append(before or limit_pass(model, samples, cell.samples, folder))
        while (
            outcome.ok and len(outcome.runs) < cell.repeats and not (subject.peer and outcome.spent_s() > PEER_BUDGET_S)
        ):
            outcome.runs.append(_quantize(subject, model, samples, cell.samples, folder))
            outcome.limits.append(limit_pass(model, samples, cell.samples, folder))
        quantized = folder / "out" / "model.onnx"
        outcome.float_bytes = _stored(folder / "in")
        if outcome.ok:
            outcome.bytes = _stored(quantized.parent)
            outcome = _judged(bench, outcome, quantized) if cell.judged else outcome
    return outcome, outcome.limits[-1]


def limit_pass(model: Path, samples: Path, count: int, folder: Path) -> Run:
    """One plain FP32 pass.

    Raises:
        BenchmarkError: It failed.
    """
    run = _child(LIMIT, "limit", Order(model, samples, count, folder / "none", folder / "limit.answer"), folder)
    if run.error:
        raise BenchmarkError(f"the plain pass of {model} failed: {run.error}")
    return run


def _quantize(subject: Subject, model: Path, samples: Path, count: int, folder: Path) -> Run:
    """Quantizes a copy, because one of the peers rewrites its input."""
    for name in ("in", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for part in (model, *model.parent.glob("*.data")):
        shutil.copyfile(part, folder / "in" / part.name)
    copy, output = folder / "in" / model.name, folder / "out" / "model.onnx"
    if subject.peer:
        order = Order(copy, samples, count, output, folder / "answer", dict(subject.options))
        run = _child(subject.peer, subject.peer, order, folder)
    else:
        run = _ours(subject, copy, samples, count, output, folder)
    if digest(copy) == digest(model):
        return run
    shutil.copyfile(model, copy)
    return replace(run, remark="; ".join(filter(None, (run.remark, "rewrote its input file"))))


def _child(environment: str, child: str, order: Order, folder: Path) -> Run:
    order.write(folder / "order.json")
    order.answer.unlink(missing_ok=True)
    command = [str(peers.python(environment)), "-m", f"benchmarks.children.{child}", str(folder / "order.json")]
    log = folder / "log"
    usage = process.run(command, folder=folder, log=log)
    if not order.answer.exists():
        return Run(usage.wall_s, usage.cpu_s, usage.peak_mb, error=usage.error or _last_words(log, usage.code))
    answer = json.loads(order.answer.read_text(encoding="utf8"))
    return Run(
        usage.wall_s,
        usage.cpu_s,
        usage.peak_mb,
        work_s=answer["work_s"],
        error=answer["error"] or "",
        remark=answer["remark"],
        versions=answer["versions"],
    )


def _ours(subject: Subject, model: Path, samples: Path, count: int, output: Path, folder: Path) -> Run:
    """The command that a user types."""
    script = Path(sys.executable).with_name("qcompiler")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "qcompiler"]
    arguments = ["quantize", str(model), "--data", str(samples), "--samples", str(count), "-o", str(output)]
    log = folder / "log"
    usage = process.run([*start, *arguments, *subject.flags], folder=folder, log=log)
    error = usage.error or (_last_words(log, usage.code) if usage.code else "")
    return Run(usage.wall_s, usage.cpu_s, usage.peak_mb, error=error, versions=_our_versions())


@cache
def _our_versions() -> dict[str, str]:
    from qcompiler._version import __version__

    found = {"qcompiler": __version__}
    for name in ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two ONNX Runtimes is not there
            continue
    return found


def _judged(bench: Bench, outcome: Outcome, quantized: Path) -> Outcome:
    """A model that cannot be run is a result, too."""
    try:
        return replace(outcome, evaluation=bench.evaluate(outcome.cell.model, quantized))
    except BenchmarkError as error:
        return replace(outcome, evaluation={"error": str(error)})


def _last_words(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1][:500] if lines else 'no message'}"


def _stored(folder: Path) -> int:
    """Bytes of the model in `folder` and of its external data."""
    parts = {folder / "model.onnx", *folder.glob("model*.data")}
    return sum(part.stat().st_size for part in parts if part.is_file())


def digest(path: Path) -> str:
    """BLAKE2b of a file."""
    with path.open("rb") as stream:
        total = blake2b(digest_size=16)
        while block := stream.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def to_json(outcome: Outcome) -> dict[str, Any]:
    """For the file of a cell."""
    return asdict(outcome)
