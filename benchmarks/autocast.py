"""FP16 typing beside AutoCast of NVIDIA Model Optimizer: accuracy, how much computes in FP16, size, time, memory.

    python -m benchmarks.autocast MODELS CACHE NAME...

MODELS/NAME holds model.onnx and load.py; samples are written to CACHE. Both tools get the same 32 samples and keep the
types of inputs and outputs; AutoCast has a second row without samples, which is how it runs unless told otherwise. Each
runs in a process of its own, whose wall time (imports included) and peak memory are measured from outside.

SQNR is that of the worst float output against the FP32 model, in ONNX Runtime on the CPU on 16 further samples. Every
FP16 value is rounded to FP16 there: left to itself, ONNX Runtime computes chains of FP16 operators in FP32, and neither
rounding nor overflow would show (see `qcompiler.emulation`). A node counts as FP16 if a float input or output of it is;
nodes that hold no floats, Casts and constants are not counted. Nodes in branches and bodies count like others; MACs are
those of the main graph.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from benchmarks import peers, process
from benchmarks.children.common import Feeds, Samples
from benchmarks.children.order import Order
from benchmarks.measure import Bench
from benchmarks.process import Usage
from qcompiler import element_types, emulation, shapes
from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.drift import sqnr_db
from qcompiler.engines import Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import QCompilerError
from qcompiler.macs import concrete_shapes, macs_of
from qcompiler.numerics import power
from qcompiler.session import Session

GIVEN, JUDGED = 32, 16
TOOLS = ("qcompiler", "AutoCast", "AutoCast, random data")
HEAD = "| model | tool | SQNR dB | FP16 nodes | FP16 MACs | Casts | size MB | wall s | peak MB | TensorRT-RTX |"
_UNCOUNTED = ("Cast", "Constant", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear")
_HALF = np.dtype(np.float16)


@dataclass(frozen=True)
class Typing:
    """How much of a model computes in FP16: counts of nodes and multiply-accumulates, 0 or more."""

    nodes: int
    half_nodes: int
    macs: int
    half_macs: int
    casts: int


def typing_of(graph: gs.Graph, feed: Feeds) -> Typing:
    """Counts the nodes and MACs of a typed graph; `feed` gives the shapes."""
    types = element_types.infer_all(graph)
    floats = [
        (node, {types.get(id(tensor)) for tensor in (*node.inputs, *node.outputs) if tensor.name})
        for node in graphs.walk(graph)
        if node.op not in _UNCOUNTED and not graphs.subgraphs(node)
    ]
    counted = [(node, held) for node, held in floats if held & {_HALF, element_types.FP32}]
    linear = [node for node in graph.nodes if graphs.is_linear(node)]
    wanted = [t.name for node in linear for t in (*node.inputs[:2], node.outputs[0]) if not graphs.is_constant(t)]
    sizes = concrete_shapes(graph, feed, wanted)
    macs = {id(node): macs_of(node, sizes) for node in linear}
    half = [node for node, held in counted if _HALF in held]
    return Typing(
        len(counted),
        len(half),
        sum(macs.values()),
        sum(macs.get(id(node), 0) for node in half),
        sum(node.op == "Cast" for node in graphs.walk(graph)),
    )


def worst_sqnr(reference: Path, path: Path, feeds: list[Feeds]) -> float:
    """SQNR in dB of the worst float output, pooled over the feeds."""
    plain, typed = Session(reference), Session(emulation.runnable(models.load(path), half=True))
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for feed in feeds:
        got = typed.run(feed)
        for name, value in plain.run(feed).items():
            if value.dtype == np.float32:
                error = value - got[name].astype(np.float32)
                signal[name] = signal.get(name, 0.0) + power(value)
                noise[name] = noise.get(name, 0.0) + (power(error) if np.all(np.isfinite(error)) else np.inf)
    return min(sqnr_db(signal[name], noise[name]) for name in signal)


def _run(tool: str, model: Path, samples: Path, folder: Path) -> tuple[Path, Usage, str]:
    """Lets a tool convert a copy of the model; returns the result, what it took and what went wrong."""
    own = folder / "in" / "model.onnx"
    own.parent.mkdir()
    shutil.copyfile(model, own)
    output, answer, log = folder / "out.onnx", folder / "answer", folder / "log"
    if tool == TOOLS[0]:
        arguments = ["quantize", str(own), "--precision", "fp16", "--data", str(samples), "-o", str(output)]
        command = [sys.executable, "-m", "qcompiler.cli", *arguments]
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


def _builds(path: Path, feed: Feeds, folder: Path) -> str:
    """`yes`, or the beginning of what TensorRT-RTX says against the model."""
    graph = models.load(path).graph
    open_inputs = [t for t in graph.inputs if graphs.static_shape(t) is None]
    profile = Profile({t.name: (feed[t.name].shape,) * 3 for t in open_inputs})
    try:
        TensorRTRTX(("sm89",)).build(path, folder / "m.engine", [profile] if open_inputs else [])
    except QCompilerError as error:
        return f"no: {str(error)[:160]}"
    return "yes"


def rows(name: str, model: Path, samples: Samples, work: Path) -> Iterator[str]:
    """A row of the table for each tool."""
    given = work / "given"
    given.mkdir()
    for file in samples.files[:GIVEN]:
        shutil.copyfile(file, given / file.name)
    feeds = [samples[index] for index in range(GIVEN, GIVEN + JUDGED)]
    for tool in TOOLS:
        folder = work / tool.replace(" ", "_")
        folder.mkdir()
        output, usage, error = _run(tool, model, given, folder)
        cost = f"{usage.wall_s:.1f} | {usage.peak_mb:.0f}"
        if error:
            yield f"| {name} | {tool} | failed: {' '.join(error.split())[:200]} | | | | | {cost} | |"
            continue
        size = output.stat().st_size + sum(part.stat().st_size for part in output.parent.glob("out*.data"))
        judged, builds = _judged(model, output, feeds), _builds(output, feeds[0], folder)
        yield f"| {name} | {tool} | {judged} | {size / 2**20:.1f} | {cost} | {builds} |"


def _judged(reference: Path, path: Path, feeds: list[Feeds]) -> str:
    """The cells from SQNR to Casts; a model that ONNX Runtime cannot run is a result, too."""
    loaded = models.load(path)
    shapes.infer(loaded)
    found = typing_of(loaded.graph, feeds[0])
    share = f"{found.half_macs / found.macs:.1%}" if found.macs else "none"
    try:
        accuracy = f"{worst_sqnr(reference, path, feeds):.1f}"
    except QCompilerError as error:
        accuracy = f"cannot run: {str(error)[:160]}"
    return f"{accuracy} | {found.half_nodes} of {found.nodes} | {share} | {found.casts}"


def main(arguments: list[str]) -> Any:
    """Prints the table."""
    if len(arguments) < 3:
        return __doc__
    bench = Bench(Path(arguments[0]), Path(arguments[1]))
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    for name in arguments[2:]:
        samples = Samples(bench.samples(name, GIVEN + JUDGED), GIVEN + JUDGED)
        with TemporaryDirectory(prefix="autocast-") as work:
            for row in rows(name, bench.model(name), samples, Path(work)):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
