"""What the tests of the typing pass share: measure, type, check, and ask the real compiler."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.engines import listing
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Report, Skipped
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.plan import Decision
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.target import DType
from tests.kit.rewrite import Spec, check, model, random_feeds, to_graph, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


F32 = np.dtype(np.float32)


def rng() -> np.random.Generator:
    """The same numbers whatever ran before."""
    return np.random.default_rng(7)


def weight(*shape: int) -> NDArray[Any]:
    return np.asarray(np.random.default_rng(shape).standard_normal(shape) / np.sqrt(shape[0]), np.float32)


def typed(
    proto: onnx.ModelProto, feeds: Feeds | None = None, *, tolerance: float = 2e-3, **options: Any
) -> tuple[gs.Graph, dict[str, Decision]]:
    """Measures, types and checks; returns the graph and the decisions by node."""
    graph = to_graph(proto)
    feeds = feeds or random_feeds(graph)
    pass_ = HighPrecision(ranges=ranges.measure(graph, [feeds]), **options)
    done, report = check(pass_, proto, feeds, tolerance=tolerance)
    return done, {one.node: one for one in report.decisions}


def stays(proto: onnx.ModelProto, node: str, rule: str, feeds: Feeds | None = None, **options: Any) -> Decision:
    """Types and asserts that one node stays FP32 by one rule; the report has the reason too."""
    graph = to_graph(proto)
    feeds = feeds or random_feeds(graph)
    report = HighPrecision(ranges=ranges.measure(graph, [feeds]), **options)(graph)
    found = {one.node: one for one in report.decisions}[node]
    assert (found.precision, found.rule) == (DType.FP32, rule), found
    assert any(isinstance(note, Skipped) and note.node == node and rule in note.text for note in report.notes)
    onnx.checker.check_model(whole(graph), full_check=True)
    return found


def ops(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def by_name(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def assert_no_cast_behind_a_cast(graph: gs.Graph) -> None:
    for node in graph.nodes:
        assert not (node.op == "Cast" and graphs.is_op(graphs.producer(node.inputs[0]), "Cast")), node.name
        assert not (node.op == "Cast" and graphs.is_constant(node.inputs[0])), node.name
    casts = Counter((node.inputs[0].name, node.attrs["to"]) for node in graph.nodes if node.op == "Cast")
    assert not [key for key, count in casts.items() if count > 1]


def operand_types(graph: gs.Graph, folder: Path) -> dict[str, tuple[str, ...]]:
    """What TensorRT-RTX made of each node: operand types of the kernel that its own listing names it in."""
    (folder / "m.onnx").write_bytes(whole(graph).SerializeToString())
    TensorRTRTX(("sm89",)).build(folder / "m.onnx", folder / "m.engine")
    found: dict[str, tuple[str, ...]] = {}
    for one in listing.read(folder / "m.engine"):
        for op in one.ops:
            for name in op.nodes:
                found.setdefault(name, op.input_types)
    return found


_SCALES = {
    "s": np.float32(0.03),
    "z": np.int8(0),
    "w8": rng().integers(-127, 128, (16, 32)).astype(np.int8),
    "ws": np.linspace(0.001, 0.003, 32).astype(np.float32),
    "wz": np.zeros(32, np.int8),
}


_QDQ: tuple[Spec, ...] = (
    ("Relu", "x", "r"),
    ("QuantizeLinear", "r s z", "q"),
    ("DequantizeLinear", "q s z", "d"),
    ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
    ("MatMul", "d w", "m"),
    ("Relu", "m", "y"),
)


def quantized(opset: int, *more: Spec, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    proto = model(*_QDQ, *more, inputs={"x": ("n", 16)}, outputs=outputs, weights=_SCALES, opset=opset)
    proto.ir_version = 11
    return proto


def bordered(proto: onnx.ModelProto, feeds: Feeds | None = None, dtype: DType = DType.FP16) -> tuple[gs.Graph, Report]:
    graph = to_graph(proto)
    feeds = feeds or random_feeds(graph)
    report = HighPrecision(dtype, ranges.measure(graph, [feeds]), io_types="high-precision")(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    if dtype is DType.FP16:
        given = {t.name: feeds[t.name].astype(graphs.dtype_of(t)) for t in graph.inputs}
        want = Session(to_graph(proto), optimize=False).run(feeds)
        for name, value in Session(graph, optimize=False).run(given).items():
            np.testing.assert_allclose(value, want[name], atol=2e-2 * max(1.0, float(np.abs(want[name]).max())))
    return graph, report


def interface(graph: gs.Graph) -> list[tuple[str, Any]]:
    return [(tensor.name, graphs.dtype_of(tensor)) for tensor in (*graph.inputs, *graph.outputs)]
