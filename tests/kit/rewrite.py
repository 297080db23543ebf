"""How a rewrite is tested: structure, numbers, the ONNX checker, and a second run that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.graph import np_dtype
from qcompiler.ir.model import to_proto
from qcompiler.ir.weights import Weights
from qcompiler.passes.base import Changed, Note, Pass, Report, Skipped
from qcompiler.runtime import shapes
from qcompiler.runtime.session import Session
from qcompiler.verification.equivalence import differences
from tests.kit import facts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


Dims = Sequence[int | str | None]
Spec = tuple[
    Any, ...
]  # (op, "inputs by blanks", "outputs by blanks", {attributes}, domain); the last two may be left out


def node(
    op: str, inputs: str, outputs: str, attrs: Mapping[str, Any] | None = None, domain: str = ""
) -> onnx.NodeProto:
    """A node; `_` stands for an omitted input or output. The node is named like its first output, in capitals."""
    reads, writes = ([("" if name == "_" else name) for name in text.split()] for text in (inputs, outputs))
    return helper.make_node(
        op, reads, writes, name=(writes[0] if writes else op).upper(), domain=domain, **(attrs or {})
    )


def graph_proto(
    nodes: Sequence[Spec], inputs: Mapping[str, Any], outputs: Sequence[str], weights: Mapping[str, Any] | None = None
) -> onnx.GraphProto:
    """A graph; an input is a shape (float32) or a pair of type and shape; outputs have no declared type."""
    return helper.make_graph(
        [node(*spec) for spec in nodes],
        "main",
        [_input(name, what) for name, what in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )


def _input(name: str, what: Any) -> onnx.ValueInfoProto:
    dtype, dims = what if len(what) == 2 and isinstance(what[1], tuple) else (np.float32, what)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)


def model(
    *nodes: Spec,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model whose outputs got their types by inference; the default input is `x` float32 [2, 4]."""
    body = graph_proto(nodes, inputs or {"x": (2, 4)}, outputs, weights)
    used = {spec[4] for spec in nodes if len(spec) > 4 and spec[4]}
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in sorted({*domains, *used})),
    ]
    proto = helper.make_model(body, opset_imports=imports, ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(proto)
    for value, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)
    return proto


def content(graph: gs.Graph) -> tuple[bytes, dict[str, bytes]]:
    """All of a graph and its weights, to tell whether somebody has changed it."""
    proto, arrays = to_proto(graph)
    return proto.SerializeToString(deterministic=True), {name: array.tobytes() for name, array in arrays.items()}


def to_graph(proto: onnx.ModelProto) -> gs.Graph:
    """The graph as the product imports it, with inferred shapes."""
    graph = graph_from_proto(proto, Weights(Path("test.onnx"), np.empty(0, np.uint8)))
    shapes.infer(graph)
    return graph


def whole(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as a proto with its weights inside."""
    proto, arrays = to_proto(graph)
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(arrays[tensor.name]), tensor.name))
    return proto


def random_feeds(graph: gs.Graph, seed: int = 0, open_dim: int = 3) -> Feeds:
    """Numbers for every input: standard normal floats, small integers; open dimensions are `open_dim`."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for tensor in graph.inputs:
        dims = [dim if isinstance(dim, int) else open_dim for dim in tensor.shape or ()]
        dtype = np_dtype(tensor.dtype) or np.dtype(np.float32)
        drawn = rng.standard_normal(dims) if dtype.kind == "f" else rng.integers(0, 2, dims)
        feeds[tensor.name] = np.asarray(drawn, dtype)
    return feeds


def doubling(monkeypatch: pytest.MonkeyPatch, kind: type[Pass]) -> None:
    """Makes a pass wrong: behind its own edits, the first output of the model is twice as large."""
    right = kind.rewrite

    def wrong(self: Pass, graph: gs.Graph) -> Iterator[Note]:
        yield from right(self, graph)
        output = graph.outputs[0]
        single = gs.Variable(f"{output.name}/single", output.dtype, output.shape)
        output.inputs[0].outputs[0] = single
        graph.nodes.append(gs.Node("Add", "double", {}, [single, single], [output]))
        yield Changed("double", "wrong")

    monkeypatch.setattr(kind, "rewrite", wrong)


def check(
    pass_: Pass,
    proto: onnx.ModelProto,
    feeds: Feeds | None = None,
    *,
    ops: Sequence[str] | None = None,
    tolerance: float = 1e-6,
    settles: bool = True,
) -> tuple[gs.Graph, Report]:
    """Runs a pass that must change something, and asserts everything that holds for any rewrite.

    Args:
        pass_: the pass.
        proto: the model before.
        feeds: what to run it on; random numbers where None.
        ops: operators of the main graph afterwards, in order.
        tolerance: largest difference of an output, relative to its largest value.
        settles: whether a second run must change nothing; it may where one run changes only so much.

    Returns:
        The graph afterwards and the report, for what else is to be asserted.
    """
    graph = to_graph(proto)
    feeds = feeds or random_feeds(graph)
    before, written, options = _run(graph, feeds), _bytes(graph), repr(vars(pass_))
    report = pass_(graph)
    assert repr(vars(pass_)) == options, "the pass keeps something of its run"
    assert report.changed, f"nothing changed; notes: {report.notes}"
    assert _bytes(graph) != written, f"the pass says that it changed something, and did not: {report.notes}"
    if ops is not None:
        assert [one.op for one in graph.nodes] == list(ops)
    onnx.checker.check_model(whole(graph), full_check=True)
    errors = differences(before, _run(graph, feeds))
    assert all(error <= tolerance for error in errors.values()), errors
    for fact in type(pass_).provides:
        assert facts.verify(fact, graph) == []
    if settles:
        _assert_settled(pass_, graph)
    return graph, report


def check_written(
    pass_: Pass, proto: onnx.ModelProto, feeds: Feeds | None = None, *, tolerance: float = 1e-5
) -> gs.Graph:
    """Runs a pass that writes out every operator of other domains, and compares with ONNX Runtime's own kernels.

    Args:
        pass_: the pass.
        proto: the model before; the types of its outputs are found by running it.
        feeds: what to run it on; random numbers where None.
        tolerance: largest difference of an output, relative to its largest value.
    """
    graph = to_graph(proto)
    feeds = feeds or random_feeds(graph)
    for output in proto.graph.output:
        output.ClearField("type")
    before = _run(to_graph(proto), feeds)
    report = pass_(graph)
    left = [(one.op, one.domain) for one in graph.nodes if one.domain not in (None, "", "ai.onnx")]
    assert not left, report.notes
    assert report.changed
    after = _run(graph, feeds)
    for name, (value,) in before.items():
        assert after[name][0].dtype == value.dtype, name
    errors = differences(before, after)
    assert all(error <= tolerance for error in errors.values()), errors
    _assert_settled(pass_, graph)
    return graph


def check_skipped(pass_: Pass, proto: onnx.ModelProto, why: str) -> Report:
    """Runs a pass that must refuse to change anything, with a reason that contains `why`."""
    graph = to_graph(proto)
    written = _bytes(graph)
    report = pass_(graph)
    assert not report.changed, report.notes
    assert _bytes(graph) == written
    reasons = [note.text for note in report.notes if isinstance(note, Skipped)]
    assert any(why in reason for reason in reasons), f"no reason contains '{why}': {reasons}"
    return report


def check_untouched(pass_: Pass, proto: onnx.ModelProto) -> None:
    """Runs a pass on a model that does not concern it at all: no edit, and nothing to say."""
    graph = to_graph(proto)
    written = _bytes(graph)
    report = pass_(graph)
    assert report.notes == ()
    assert _bytes(graph) == written


def _assert_settled(pass_: Pass, graph: gs.Graph) -> None:
    written = _bytes(graph)
    again = [note for note in pass_(graph).notes if isinstance(note, Changed)]
    assert not again, f"a second run still changes {again}"
    assert _bytes(graph) == written


def _run(graph: gs.Graph, feeds: Feeds) -> dict[str, list[NDArray[Any]]]:
    return {name: [np.asarray(value)] for name, value in Session(graph, optimize=False).run(feeds).items()}


def _bytes(graph: gs.Graph) -> bytes:
    written: bytes = whole(graph).SerializeToString(deterministic=True)
    return written


def branching() -> gs.Graph:
    """Abs, an If that reads its result and the input, an Add of both."""
    inner_then = graph_proto([("Mul", "a x", "p"), ("Relu", "p", "t")], {}, ["t"])
    inner_other = graph_proto([("Neg", "a", "o")], {}, ["o"])
    return to_graph(
        model(
            ("Abs", "x", "a"),
            ("If", "flag", "b", {"then_branch": inner_then, "else_branch": inner_other}),
            ("Add", "b a", "y"),
            inputs={"x": (2, 4), "flag": (bool, ())},
        )
    )
