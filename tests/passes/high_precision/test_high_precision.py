"""Typing in FP16 and BF16: what moves, what stays, and where the Casts stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, random_feeds, to_graph, whole
from tests.kit.typed import (
    by_name,
    operand_types,
    quantized,
    stays,
    typed,
    weight,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


def test_fp32_changes_nothing() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    assert HighPrecision(DType.FP32)(graph).notes == ()


def test_text_form_names_the_type_only() -> None:
    assert str(HighPrecision(DType.BF16, Ranges({"x": Range(0, 1)}))) == "high-precision{dtype=bf16}"


def test_nodes_can_be_kept_by_name() -> None:
    proto = model(("MatMul", "x w", "m"), ("MatMul", "m w", "y"), weights={"w": weight(4, 4)})
    stays(proto, "M", "kept", keep=("M",))


# --- BF16 -------------------------------------------------------------------------------------------------------------


def test_bf16_needs_no_ranges_and_passes_the_checker() -> None:
    graph = to_graph(quantized(23))
    report = HighPrecision(DType.BF16)(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    assert {one.precision for one in report.decisions} == {DType.BF16}
    assert by_name(graph, "D").attrs["output_dtype"] == onnx.TensorProto.BFLOAT16


def test_bf16_leaves_what_has_no_bf16_form() -> None:
    proto = model(("Relu", "x", "r"), ("Einsum", "r w", "y", {"equation": "ij,jk->ik"}), weights={"w": weight(4, 4)})
    graph = to_graph(proto)
    report = HighPrecision(DType.BF16)(graph)
    assert {one.node: one.rule for one in report.decisions}["Y"] == "no-kernel"


# --- The real compiler ------------------------------------------------------------------------------------------------


def test_tensorrt_rtx_keeps_int8_products_and_float_scales(tmp_path: Path) -> None:
    proto = quantized(23)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    graph, _ = typed(proto)
    assert operand_types(graph, tmp_path)["M"][:2] == ("int8", "int8")


# --- Generated graphs -------------------------------------------------------------------------------------------------

_UNARY = ("Relu", "Sigmoid", "Tanh", "Exp", "Identity", "Neg", "Abs", "Softmax", "Erf")
_BINARY = ("Add", "Mul", "Sub", "Max")


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    nodes: list[Spec] = []
    names = ["x"]
    for i in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from((*_UNARY, *_BINARY, "MatMul", "CumSum", "Cast")))
        reads = draw(st.sampled_from(names))
        if op in _BINARY:
            reads += " " + draw(st.sampled_from([*names, "c"]))
        nodes.append(
            (op, reads + {"MatMul": " w", "CumSum": " axis"}.get(op, ""), f"t{i}", {"to": 1} if op == "Cast" else {})
        )
        names.append(f"t{i}")
    outputs = tuple(dict.fromkeys(draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=3))))
    used = {name for spec in nodes for name in spec[1].split()}
    held = {"w": weight(4, 4), "c": weight(4) + 1, "axis": np.array(1)}
    return model(*nodes, outputs=outputs, weights={name: held[name] for name in held if name in used})


@settings(max_examples=40)
@given(chains())
def test_any_graph_stays_legal_and_close_and_settles(proto: onnx.ModelProto) -> None:
    graph = to_graph(proto)
    feeds = random_feeds(graph)
    before = Session(to_graph(proto), optimize=False).run(feeds)
    pass_ = HighPrecision(ranges=ranges.measure(graph, [feeds]))
    pass_(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    for name, value in Session(graph, optimize=False).run(feeds).items():
        np.testing.assert_allclose(value, before[name], atol=2e-2 * max(1.0, float(np.abs(before[name]).max())))
    written = whole(graph).SerializeToString(deterministic=True)
    pass_(graph)
    assert whole(graph).SerializeToString(deterministic=True) == written
