"""What a typed model is worth: `... judge_typing REFERENCE TYPED SAMPLES FIRST COUNT` prints table cells as JSON.

A process of its own: the one that measures memory from outside must stay small (see `benchmarks.process`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_graphsurgeon as gs

from benchmarks.children.common import Feeds, Samples
from qcompiler.engines.base import Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import QCompilerError
from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.macs import macs_of
from qcompiler.numerics.sqnr import power, sqnr_db
from qcompiler.runtime import shapes
from qcompiler.runtime.session import Session
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.verification import emulation

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
    macs = {id(node): macs_of(node, sizes) or 0 for node in linear}
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
    loaded = models.load(path)
    shapes.infer(loaded)  # those in the file may be wrong
    plain, typed = Session(reference), Session(emulation.runnable(loaded, half=True))
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


def main(reference: Path, typed: Path, samples: Path, first: int, count: int) -> int:
    """Prints the cells from SQNR to Casts, and what TensorRT-RTX says."""
    stored = Samples(samples, first + count)
    feeds = [stored[first + index] for index in range(count)]
    with TemporaryDirectory() as folder:
        print(json.dumps([_judged(reference, typed, feeds), _builds(typed, feeds[0], Path(folder))]))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
