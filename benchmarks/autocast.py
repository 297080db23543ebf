"""FP16 typing beside AutoCast of NVIDIA Model Optimizer: accuracy, how much computes in FP16, size, time, memory.

    python -m benchmarks.autocast MODELS CACHE NAME...

MODELS/NAME holds model.onnx and load.py; samples are written to CACHE. Both tools get the same 32 samples and keep the
types of inputs and outputs; AutoCast has a second row without samples, which is how it runs unless told otherwise. Each
runs in a process of its own, whose wall time (imports included) and peak memory are measured from outside.

SQNR is that of the worst float output against the FP32 model, in ONNX Runtime on the CPU on 16 further samples. Every
FP16 value is rounded to FP16 there: left to itself, ONNX Runtime computes chains of FP16 operators in FP32, and neither
rounding nor overflow would show (see `qcompiler.verification.emulation`). A node counts as FP16 if a float input or
output of it is; nodes that hold no floats, Casts and constants are not counted. Nodes in branches and bodies count like
others; MACs are those of the main graph.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import peers, process
from benchmarks.children.order import Order
from benchmarks.measure import Bench
from benchmarks.process import Usage

GIVEN, JUDGED = 32, 16
TOOLS = ("qcompiler", "AutoCast", "AutoCast, random data")
HEAD = "| model | tool | SQNR dB | FP16 nodes | FP16 MACs | Casts | size MB | wall s | peak MB | TensorRT-RTX |"


def _run(tool: str, model: Path, samples: Path, folder: Path) -> tuple[Path, Usage, str]:
    """Lets a tool convert a copy of the model; returns the result, what it took and what went wrong."""
    own = folder / "in" / "model.onnx"
    own.parent.mkdir()
    shutil.copyfile(model, own)
    output, answer, log = folder / "out.onnx", folder / "answer", folder / "log"
    if tool == TOOLS[0]:
        arguments = ["quantize", str(own), "--precision", "fp16", "--data", str(samples), "-o", str(output)]
        command = [sys.executable, "-m", "qcompiler", *arguments]
    else:
        options = {"data": "yes" if tool == "AutoCast" else "no"}
        Order(own, samples, GIVEN, output, answer, options).write(folder / "order.json")
        command = [str(peers.python("modelopt")), "-m", "benchmarks.children.autocast", str(folder / "order.json")]
    usage = process.run(command, folder=folder, log=log)
    error = usage.error or (_last_line(log) if usage.code else "")
    if answer.exists():
        error = json.loads(answer.read_text(encoding="utf8"))["error"] or error
    return output, usage, error


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf8", errors="replace").strip().splitlines() or ["no message"])[-1]


def _judge(reference: Path, output: Path, samples: Path) -> list[str]:
    """What the child `judge_typing` says of a typed model."""
    command = [sys.executable, "-m", "benchmarks.children.judge_typing", str(reference), str(output), str(samples)]
    environment = {**os.environ, **process.QUIET}
    done = subprocess.run(
        [*command, str(GIVEN), str(JUDGED)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [f"not judged: {(done.stderr.strip().splitlines() or ['no message'])[-1][:160]} | | |", ""]
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(name: str, model: Path, samples: Path, work: Path) -> Iterator[str]:
    """A row of the table for each tool."""
    given = work / "given"
    given.mkdir()
    for file in sorted(samples.glob("*.npz"))[:GIVEN]:
        shutil.copyfile(file, given / file.name)
    for tool in TOOLS:
        folder = work / tool.replace(" ", "_")
        folder.mkdir()
        output, usage, error = _run(tool, model, given, folder)
        cost = f"{usage.wall_s:.1f} | {usage.peak_mb:.0f}"
        if error:
            yield f"| {name} | {tool} | failed: {' '.join(error.split())[:200]} | | | | | {cost} | |"
            continue
        size = output.stat().st_size + sum(part.stat().st_size for part in output.parent.glob("out*.data"))
        judged, builds = _judge(model, output, samples)
        yield f"| {name} | {tool} | {judged} | {size / 2**20:.1f} | {cost} | {builds} |"


def main(arguments: list[str]) -> Any:
    """Prints the table."""
    if len(arguments) < 3:
        return __doc__
    bench = Bench(Path(arguments[0]), Path(arguments[1]))
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    for name in arguments[2:]:
        samples = bench.samples(name, GIVEN + JUDGED)
        with TemporaryDirectory(prefix="autocast-") as work:
            for row in rows(name, bench.model(name), samples, Path(work)):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
