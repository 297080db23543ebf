"""Where a quantized graph leaves its float original: SQNR of inner tensors, in graph order.

Tapped are the outputs of linear and recurrent nodes that both graphs know by the same name and read by the same
operators: where a pass has folded a BatchNormalization or a bias into the node, its output keeps the name and means
something else. A tensor *drifts* when

    SQNR < LIMIT_DB,   or   SQNR < min(SQNR of the nearest tapped tensors before it, FRESH_DB) - DROP_DB

with SQNR = 10 log10(sum ref^2 / sum (ref - quantized)^2), pooled over the samples. FRESH_DB stands for the float input
of the first quantized layer, whose SQNR is infinite: a layer that costs no more than INT8 usually does is no drift.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.operators import TAPPED
from qcompiler.numerics.sqnr import sqnr_db
from qcompiler.runtime.stream import OpenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


LIMIT_DB: Final = 12.0
DROP_DB: Final = 6.0
FRESH_DB: Final = 32.0

_STORING = ("Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear")
_FIRST_GROUP = 8  # taps of the first run, which shows how large they are
_BUDGET = 64 << 20  # bytes of tapped tensors that a run of one graph may hold


@dataclass(frozen=True, slots=True)
class TappedLayer:
    """One tapped tensor.

    Attributes:
        tensor: its name in both graphs.
        node: the node of the float graph that writes it, and `op`, its operator.
        sqnr_db: SQNR in dB against the float graph; infinite where both agree to the bit.
        before_db: the worst SQNR of the nearest tapped tensors that it depends on; infinite where there are none.
        drifts: whether it fell below the limit or dropped by too much, as the module says.
    """

    tensor: str
    node: str
    op: str
    sqnr_db: float
    before_db: float
    drifts: bool


def compare_layers(
    float_model: models.Model, quantized: models.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], *, most: int = 96
) -> tuple[TappedLayer, ...]:
    """Compares inner tensors on a few feeds; `most` limits how many, evenly spaced over the graph.

    Memory: the tensors are tapped in groups, so that one run holds about 64 MiB of them for each graph.
    """
    taps = _spaced(_common(float_model.graph, quantized.graph), most)
    found: dict[str, float] = {}
    size = _FIRST_GROUP
    waiting = [node.outputs[0].name for node in taps]
    while waiting:
        group, waiting = waiting[:size], waiting[size:]
        largest = _measure(float_model, quantized, feeds, group, found)
        size = max(1, min(_BUDGET // max(largest, 1), len(waiting)))
    return tuple(_layers(float_model.graph, found))


def _common(reference: gs.Graph, quantized: gs.Graph) -> list[gs.Node]:
    written = {t.name: t for node in quantized.nodes for t in node.outputs if _readable(t)}
    linear = (node for node in reference.nodes if graphs.is_op(node, *TAPPED) and node.outputs)
    return [
        node
        for node in linear
        if _readable(tensor := node.outputs[0])
        and tensor.name in written
        and _readers(reference, tensor) == _readers(quantized, written[tensor.name])
    ]


def _readers(graph: gs.Graph, tensor: gs.Tensor) -> set[str]:
    """The operators that read a tensor, looking through those that only store it in another way."""
    found = {""} if graphs.is_output(graph, tensor) else set()
    for node, _ in graphs.consumers(tensor):
        found |= _readers(graph, node.outputs[0]) if graphs.is_op(node, *_STORING) else {node.op}
    return found


def _readable(tensor: gs.Tensor) -> bool:
    """ONNX Runtime hands float tensors to numpy; BF16 it cannot."""
    dtype = graphs.dtype_of(tensor)
    return bool(tensor.name) and (dtype is None or dtype in (np.float16, np.float32, np.float64))


def _spaced(nodes: list[gs.Node], most: int) -> list[gs.Node]:
    if len(nodes) <= most:
        return nodes
    return [nodes[round(i * (len(nodes) - 1) / (most - 1))] for i in range(most)]


def _measure(
    float_model: models.Model,
    quantized: models.Model,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    names: list[str],
    found: dict[str, float],
) -> int:
    """Adds the SQNR of each name to `found`; returns the bytes of the largest tensor."""
    sums = {name: np.zeros(2) for name in names}
    sessions = [OpenModel(model, outputs=names, quick=True) for model in (float_model, quantized)]
    largest = 0
    for feed in feeds:
        reference, got = (session.run(fitting(feed, session)) for session in sessions)
        for name in names:
            largest = max(largest, reference[name].nbytes)
            sums[name] += energies(reference[name], got[name])
    found.update({name: sqnr_db(signal, noise) for name, (signal, noise) in sums.items()})
    return largest


def fitting(feed: Mapping[str, NDArray[Any]], session: OpenModel) -> dict[str, NDArray[Any]]:
    """The feed as a graph takes it that may have lost inputs or have float inputs of another width."""
    wanted = session.inputs
    result = {}
    for name, array in feed.items():
        if name not in wanted:
            continue
        dtype = wanted[name][0]
        both_float = dtype is not None and dtype.kind == "f" and array.dtype.kind == "f"
        result[name] = array.astype(dtype, copy=False) if both_float else array
    return result


def energies(reference: NDArray[Any], got: NDArray[Any]) -> NDArray[np.float64]:
    """[sum ref^2, sum (ref - got)^2] where the reference is finite; the noise is infinite where `got` is not."""
    total = np.zeros(2)
    if reference.shape != got.shape:
        return np.array([0.0, math.inf])
    first, second = reference.reshape(-1), got.reshape(-1)
    for start in range(0, first.size, 1 << 18):
        a = first[start : start + (1 << 18)].astype(np.float64)
        b = second[start : start + (1 << 18)].astype(np.float64)
        keep = np.isfinite(a)
        if not keep.all():
            a, b = a[keep], b[keep]
        error = a - b
        total += np.array([a @ a, error @ error if np.isfinite(error).all() else math.inf])
    return total


def _layers(graph: gs.Graph, found: Mapping[str, float]) -> Iterable[TappedLayer]:
    worst: dict[str, float] = {}  # tensor -> worst SQNR of the nearest taps it depends on
    for node in graph.nodes:
        inside = (t for inner in graphs.subgraphs(node) for t in _reads(inner))
        before = min((worst.get(t.name, math.inf) for t in itertools.chain(node.inputs, inside)), default=math.inf)
        for tensor in node.outputs:
            worst[tensor.name] = found.get(tensor.name, before)
        if node.outputs and node.outputs[0].name in found:
            value = found[node.outputs[0].name]
            drifts = value < LIMIT_DB or value < min(before, FRESH_DB) - DROP_DB
            yield TappedLayer(node.outputs[0].name, node.name, node.op, value, before, drifts)


def _reads(graph: gs.Graph) -> Iterable[gs.Tensor]:
    return (tensor for node in graphs.walk(graph) for tensor in node.inputs)
