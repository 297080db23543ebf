"""Typing in branches of If and bodies of Loop and Scan: what moves, what stays, and that the real compiler takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.target import DType
from qcompiler.verification.emulation import runnable
from tests.kit.rewrite import Spec, graph_proto, model, random_feeds, to_graph, whole
from tests.kit.typed import F32, rng, typed, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


F16 = np.dtype(np.float16)


def node_of(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graphs.walk(graph) if node.name == name)


def reads(graph: gs.Graph, name: str) -> list[np.dtype[Any] | None]:
    return [graphs.dtype_of(tensor) for tensor in node_of(graph, name).inputs if graphs.is_float(tensor)]


def builds(graph: gs.Graph, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(whole(graph).SerializeToString())
    TensorRTRTX(("sm89",)).build(folder / "m.onnx", folder / "m.engine")


def taken(proto: onnx.ModelProto, flag: bool = True) -> Feeds:
    return {**random_feeds(to_graph(proto)), "c": np.array(flag)}


# --- If ---------------------------------------------------------------------------------------------------------------


def branching(then: list[Spec], other: list[Spec], *after: Spec, **options: Any) -> onnx.ModelProto:
    branches = {
        "then_branch": graph_proto(then, {}, [then[-1][2]]),
        "else_branch": graph_proto(other, {}, [other[-1][2]]),
    }
    return model(
        ("MatMul", "x w", "m"),
        ("If", "c", "z", branches),
        *after,
        inputs={"x": (2, 8), "c": (np.bool_, ())},
        outputs=options.pop("outputs", ("y",) if after else ("z",)),
        weights={"w": weight(8, 8), "v": weight(8, 8), **options.pop("weights", {})},
        **options,
    )


def test_branches_compute_in_half_and_the_result_crosses_as_half(tmp_path: Path) -> None:
    proto = branching(
        [("MatMul", "m v", "a"), ("Relu", "a", "t")], [("MatMul", "x v", "e")], ("MatMul", "z w", "y"), opset=17
    )
    graph, both = to_graph(proto), [taken(proto), taken(proto, flag=False)]
    report = HighPrecision(ranges=ranges.measure(graph, both))(graph)
    decisions = {one.node: one for one in report.decisions}
    assert {decisions[name].precision for name in ("M", "A", "T", "E", "Z", "Y")} == {DType.FP16}
    assert graphs.dtype_of(node_of(graph, "Z").outputs[0]) == F16
    assert [node.op for node in graphs.walk(graph)].count("Cast") == 2  # x in, y out
    onnx.checker.check_model(whole(graph), full_check=True)
    for feeds in both:
        want = Session(to_graph(proto), optimize=False).run(feeds)["y"]
        np.testing.assert_allclose(Session(graph, optimize=False).run(feeds)["y"], want, atol=1e-2)
    builds(graph, tmp_path)


def test_a_branch_that_was_never_taken_stays_fp32() -> None:
    proto = branching([("MatMul", "m v", "t")], [("MatMul", "m v", "e")])
    graph, decisions = typed(proto, taken(proto))
    assert (decisions["T"].precision, decisions["E"].rule) == (DType.FP16, "unobserved")
    assert (decisions["Z"].precision, decisions["Z"].rule) == (DType.FP32, "control-flow")
    assert reads(graph, "T") == [F16, F16]
    assert reads(graph, "E") == [F32, F32]


def test_a_value_that_overflows_in_a_branch_keeps_its_node_fp32() -> None:
    proto = branching(
        [("MatMul", "m big", "a"), ("Mul", "a small", "t")],
        [("MatMul", "m v", "e")],
        weights={"big": weight(8, 8) * 3e4, "small": np.float32(1e-4)},
    )
    _, decisions = typed(proto, taken(proto))
    assert decisions["A"].rule == "fp16-range"


def test_an_outer_tensor_read_in_both_types_has_one_cast_beside_its_maker() -> None:
    proto = branching([("Exp", "m", "t")], [("MatMul", "m v", "e")], ("Add", "z m", "y"))
    graph = to_graph(proto)
    pass_ = HighPrecision(ranges=ranges.measure(graph, [taken(proto), taken(proto, flag=False)]))
    pass_(graph)
    assert (reads(graph, "T"), reads(graph, "E")) == ([F32], [F16, F16])
    onnx.checker.check_model(whole(graph), full_check=True)
    cast = graphs.producer(node_of(graph, "T").inputs[0])
    assert cast is not None
    assert any(cast is node for node in graph.nodes)


def test_an_if_inside_an_if_hands_half_through_both() -> None:
    inner = {
        "then_branch": graph_proto([("MatMul", "m v", "p")], {}, ["p"]),
        "else_branch": graph_proto([("MatMul", "m w", "q")], {}, ["q"]),
    }
    proto = branching([("If", "d", "t", inner)], [("Relu", "m", "e")], ("MatMul", "z w", "y"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("d", onnx.TensorProto.BOOL, ()))
    graph = to_graph(proto)
    all_ways = [
        {**taken(proto, flag=first), "d": np.array(second)}
        for first, second in ((True, True), (True, False), (False, True))
    ]
    HighPrecision(ranges=ranges.measure(graph, all_ways))(graph)
    assert [graphs.dtype_of(node_of(graph, name).outputs[0]) for name in "TZ"] == [F16, F16]
    for feeds in all_ways:
        want = Session(to_graph(proto), optimize=False).run(feeds)["y"]
        np.testing.assert_allclose(Session(graph, optimize=False).run(feeds)["y"], want, atol=1e-2)


def test_bf16_branches_are_typed_without_ranges_and_emulated() -> None:
    proto = branching([("MatMul", "m v", "t")], [("MatMul", "x v", "e")], ("MatMul", "z w", "y"), opset=22)
    proto.ir_version = 10
    graph = to_graph(proto)
    HighPrecision(DType.BF16)(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    for flag in (True, False):
        feeds = taken(proto, flag=flag)
        want = Session(to_graph(proto), optimize=False).run(feeds)["y"]
        found = Session(runnable(Model(graph, {}, None, 10))).run(feeds)["y"]
        np.testing.assert_allclose(found, want, atol=5e-2)
        assert not np.array_equal(found, want)


# --- Loop and Scan ----------------------------------------------------------------------------------------------------


def looping() -> onnx.ModelProto:
    """A cell h' = tanh(h R + x W) written out, whose steps are stacked, and a MatMul on the stack."""
    body = graph_proto(
        [
            ("Identity", "go", "on"),
            ("MatMul", "h r", "a"),
            ("Gather", "m i", "xi", {"axis": 0}),
            ("Add", "a xi", "s"),
            ("Sigmoid", "s", "gate"),
            ("Mul", "gate h", "kept"),
            ("Add", "kept gate", "next"),
            ("MatMul", "next r", "out"),
        ],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "h": (1, 8)},
        ["on", "next", "out"],
    )
    return model(
        ("MatMul", "x w", "m"),
        ("Loop", "n yes h0", "hn stack", {"body": body}),
        ("Reshape", "hn row", "z"),  # ONNX infers no shape of a state
        ("Reshape", "stack rows", "flat"),
        ("MatMul", "flat w", "y"),
        inputs={"x": (5, 1, 8), "h0": (1, 8)},
        outputs=("z", "y"),
        weights={
            "w": weight(8, 8), "r": weight(8, 8), "n": np.array(5), "yes": np.array(True),
            "row": np.array([1, 8]), "rows": np.array([5, 8]),
        },
    )  # fmt: skip


def test_products_in_a_loop_are_half_and_its_state_is_fp32(tmp_path: Path) -> None:
    graph, decisions = typed(looping())
    assert {decisions[name].precision for name in ("A", "GATE", "OUT", "Y")} == {DType.FP16}
    assert {decisions[name].rule for name in ("KEPT", "NEXT")} == {"state"}
    loop = node_of(graph, "HN")
    assert [graphs.dtype_of(tensor) for tensor in loop.outputs] == [F32, F16]
    assert decisions["HN"].precision is DType.FP16
    builds(graph, tmp_path)


def test_a_state_that_is_counted_up_beyond_half_stays_exact() -> None:
    body = graph_proto(
        [("Identity", "go", "on"), ("Add", "s one", "next"), ("Mul", "next scale", "o")],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "s": (1,)},
        ["on", "next", "o"],
    )
    proto = model(
        ("Loop", "n yes s0", "sn stack", {"body": body}),
        inputs={"s0": (1,)},
        outputs=("sn", "stack"),
        weights={
            "n": np.array(3000), "yes": np.array(True), "one": np.ones(1, np.float32), "scale": np.float32(1e-3),
        },
    )  # fmt: skip
    feeds: Feeds = {"s0": np.zeros(1, np.float32)}
    graph = to_graph(proto)
    HighPrecision(ranges=ranges.measure(graph, [feeds]))(graph)
    assert float(Session(graph, optimize=False).run(feeds)["sn"][0]) == 3000


def scanning() -> onnx.ModelProto:
    body = graph_proto(
        [("MatMul", "e r", "a"), ("Sigmoid", "a", "o"), ("Add", "h o", "next")],
        {"h": (2, 8), "e": (2, 8)},
        ["next", "o"],
    )
    return model(
        ("Relu", "x", "m"),
        ("Scan", "h0 m", "hn stack", {"body": body, "num_scan_inputs": 1}),
        ("MatMul", "stack r", "y"),
        inputs={"x": (4, 2, 8), "h0": (2, 8)},
        outputs=("hn", "y"),
        weights={"r": weight(8, 8)},
    )


def test_elements_and_stack_of_a_scan_are_half_and_its_state_is_fp32(tmp_path: Path) -> None:
    graph, decisions = typed(scanning())
    assert {decisions[name].precision for name in ("M", "A", "O", "Y", "HN")} == {DType.FP16}
    assert decisions["NEXT"].rule == "state"
    scan = node_of(graph, "HN")
    assert [graphs.dtype_of(tensor) for tensor in (*scan.inputs, *scan.outputs)] == [F32, F16, F32, F16]
    builds(graph, tmp_path)


def test_a_state_that_is_no_float_and_a_trip_count_keep_their_types() -> None:
    body = graph_proto(
        [("Less", "k limit", "on"), ("Add", "k one", "kn"), ("MatMul", "x r", "o")],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "k": (np.int64, ())},
        ["on", "kn", "o"],
    )
    proto = model(
        ("Loop", "n yes k0", "kn_out stack", {"body": body}),
        ("Reshape", "kn_out row", "count"),
        ("Reshape", "stack rows", "y"),
        inputs={"x": (2, 8), "n": (np.int64, ()), "k0": (np.int64, ())},
        outputs=("count", "y"),
        weights={
            "r": weight(8, 8), "yes": np.array(True), "limit": np.array(9), "one": np.array(1),
            "row": np.array([1]), "rows": np.array([-1, 8]),
        },
    )  # fmt: skip
    feeds: Feeds = {"x": rng().standard_normal((2, 8)).astype(np.float32), "n": np.array(3), "k0": np.array(0)}
    graph, decisions = typed(proto, feeds)
    assert decisions["O"].precision is DType.FP16
    assert reads(graph, "O") == [F16, F16]
    assert [graphs.dtype_of(tensor) for tensor in node_of(graph, "KN_OUT").inputs] == [np.int64, np.bool_, np.int64]


def test_nested_graphs_of_other_operators_are_left_alone() -> None:
    body = graph_proto([("Relu", "e", "o")], {"e": (2,)}, ["o"])
    graph = to_graph(
        model(
            ("SequenceConstruct", "x x", "s"),
            ("SequenceMap", "s", "t", {"body": body}),
            ("SequenceAt", "t zero", "y"),
            inputs={"x": (2,)},
            weights={"zero": np.array(0)},
        )
    )
    report = HighPrecision(DType.BF16)(graph)
    assert {one.node: one.rule for one in report.decisions}["O"] == "control-flow"


@pytest.mark.parametrize("make", [looping, scanning])
def test_a_second_run_changes_nothing(make: Any) -> None:
    proto = make()
    graph = to_graph(proto)
    pass_ = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))
    pass_(graph)
    written = whole(graph).SerializeToString(deterministic=True)
    assert not pass_(graph).changed
    assert whole(graph).SerializeToString(deterministic=True) == written
