"""Which products store their weight in few bits, in which form, and the reason for every other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.target import parse_target
from qcompiler.weight_only import storable
from qcompiler.weight_only.storable import WeightOnlyOptions
from tests.kit.rewrite import Spec, model, to_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.plan import Refusal
    from qcompiler.weight_only.storable import StorableLayer


def matrix(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def find(
    proto: onnx.ModelProto,
    precision: str = "int4-weight",
    target: str = "tensorrt-rtx:sm89",
    keep: tuple[str, ...] = (),
    **table: Any,
) -> tuple[list[StorableLayer], list[Refusal]]:
    options = WeightOnlyOptions(precision, WeightOnlyTable(**table), parse_target(target), keep)
    return storable.find_storable(to_graph(proto), options)


def product(depth: int, width: int, op: str = "MatMul", **attrs: Any) -> onnx.ModelProto:
    """x [4, depth] times a weight, with a Relu behind it, so that it is not the last thing in the graph."""
    w = matrix(width, depth) if attrs.get("transB") else matrix(depth, width)
    x = (depth, 4) if attrs.get("transA") else (4, depth)
    return model((op, "x w", "h", attrs), ("Relu", "h", "y"), inputs={"x": x}, weights={"w": w})


@pytest.mark.parametrize(
    ("depth", "asked", "format", "size", "why"),
    [
        (256, 128, "int4", 128, ""),
        (256, 32, "int4", 32, ""),
        (192, 128, "int4", 64, "because its depth of 192 is not made of blocks of 128"),
        (96, 128, "int4", 32, "because its depth of 96 is not made of blocks of 128"),
        (128, 128, "int4", 64, "because its depth of 128 is not made of blocks of 128"),
        (64, 128, "int4", 32, "because its depth of 64 is not made of blocks of 128"),
        (32, 128, "int8", None, "because its depth of 32 is not made of two or more blocks of 128 or 64 or 32"),
        (100, 64, "int8", None, "because its depth of 100 is not made of two or more blocks of 64 or 32"),
    ],
)
def test_blocks_divide_the_depth_into_two_or_more(
    depth: int, asked: int, format: str, size: int | None, why: str
) -> None:
    ((one,), refused) = find(product(depth, 96), block_size=asked)
    assert (one.format, one.size, one.depth, one.width) == (format, size, depth, 96)
    assert why in one.why
    assert bool(why) == bool(one.why)
    assert not refused


@pytest.mark.parametrize("depth", [32, 100, 256])
def test_int8_has_a_scale_per_output_whatever_the_depth(depth: int) -> None:
    ((one,), _) = find(product(depth, 96), "int8-weight")
    assert (one.format, one.size, one.why) == ("int8", None, "")


@pytest.mark.parametrize(
    "proto",
    [product(64, 96, "Gemm"), product(64, 96, "Gemm", transB=1), product(64, 96)],
    ids=["Gemm", "transposed", "MatMul"],
)
def test_depth_and_width_are_those_of_the_product(proto: onnx.ModelProto) -> None:
    ((one,), _) = find(proto)
    assert (one.depth, one.width, one.activation) == (64, 96, "x")


def convolution() -> onnx.ModelProto:
    return model(("Conv", "x w", "y"), inputs={"x": (1, 32, 8, 8)}, weights={"w": matrix(32, 32, 3, 3)})


def came(*nodes: Spec, **weights: Any) -> onnx.ModelProto:
    """A stored weight `w`, and what quantizes an activation, at hand."""
    held: dict[str, Any] = {
        "w8": np.ones((64, 96), np.int8), "ws": np.full(96, 0.01, np.float32), "wz": np.zeros(96, np.int8),
        "s": np.float32(0.1), "z": np.int8(0), "f": matrix(64, 96), **weights,
    }  # fmt: skip
    read = {name for node in nodes for name in node[1].split()}
    return model(
        *nodes,
        inputs={"x": (4, 64)},
        weights={name: value for name, value in held.items() if name in read},
        opset=21,
    )


PAIR: list[Spec] = [("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d")]
STORED: Spec = ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1})


@pytest.mark.parametrize(
    ("proto", "rule", "why"),
    [
        pytest.param(convolution(), "no-kernel", "engines run a Conv in float", id="convolution"),
        pytest.param(product(64, 96, "Gemm", transA=1), "no-kernel", "transposed (transA)", id="transA"),
        pytest.param(product(64, 97), "odd-size", "its weight is 64x97", id="odd width"),
        pytest.param(product(65, 96), "odd-size", "its weight is 65x96", id="odd depth"),
        pytest.param(product(64, 8), "tiny", "a 64x8 weight", id="narrow"),
        pytest.param(product(8, 64), "tiny", "a 8x64 weight", id="shallow"),
        pytest.param(
            model(("MatMul", "x w", "y"), inputs={"x": (2, 4, 64)}, weights={"w": matrix(2, 64, 96)}),
            "not-matrix", "more than two dimensions", id="batched",
        ),
        pytest.param(
            model(("MatMul", "x w", "y"), inputs={"x": (4, 64), "w": (64, 96)}), "attention", "both inputs", id="two"
        ),
        pytest.param(came(STORED, ("MatMul", "x w", "y")), "weight-only", "came stored as INT8", id="stored"),
        pytest.param(came(*PAIR, ("MatMul", "d f", "y")), "quantized-activation", "float activations only", id="pair"),
    ],
)  # fmt: skip
def test_what_stays_as_it_is_has_a_rule_and_a_reason(proto: onnx.ModelProto, rule: str, why: str) -> None:
    for precision in ("int8-weight", "int4-weight"):
        found, (one,) = find(proto, precision)
        assert not found
        assert one.rule == rule
        assert why in one.why


def test_odd_sides_are_for_tensorrt_rtx_only() -> None:
    ((one,), refused) = find(product(64, 97), target="onnxruntime")
    assert one.width == 97
    assert not refused


def test_a_node_that_is_kept_stays() -> None:
    found, (one,) = find(product(64, 96), keep=("^H$",))
    assert not found
    assert one.rule == "kept"


def head(width: int, *, behind: tuple[Spec, ...] = (), table: bool = False) -> onnx.ModelProto:
    """A product of 64 inputs whose result leaves the graph; with a table, that of an embedding."""
    weights: dict[str, Any] = {"w": matrix(width, 64) if table else matrix(64, width), "two": np.float32(2)}
    nodes: list[Spec] = [("Gather", "w ids", "x"), ("Transpose", "w", "wt")] if table else []
    nodes += [("MatMul", f"x {'wt' if table else 'w'}", "h"), *(behind or (("Identity", "h", "y"),))]
    read = {name for node in nodes for name in node[1].split()}
    return model(
        *nodes,
        inputs={"ids": (np.int64, (4,))} if table else {"x": (4, 64)},
        weights={name: value for name, value in weights.items() if name in read},
    )


@pytest.mark.parametrize(
    ("proto", "is_head", "tied"),
    [
        pytest.param(head(256), True, "", id="wide and last"),
        pytest.param(head(256, behind=(("Mul", "h two", "y"),)), True, "", id="scaled"),
        pytest.param(head(256, behind=(("Softmax", "h", "y"),)), False, "", id="something else behind"),
        pytest.param(head(128), False, "", id="not wide"),
        pytest.param(head(128, table=True), True, "X", id="tied"),
    ],
)
def test_logits_are_int8_unless_asked_otherwise(proto: onnx.ModelProto, is_head: bool, tied: str) -> None:
    ((one,), _) = find(proto)
    assert (one.format, one.tied) == (("int8" if is_head else "int4"), tied)
    assert ("because it gives the logits" in one.why) == is_head
    assert find(proto, head="same")[0][0].format == "int4"
    found, refused = find(proto, head="float")
    assert ([one.rule for one in refused] == ["head"]) == (not found) == is_head


def test_layers_are_grouped_by_what_they_read() -> None:
    weights = {name: matrix(64, 64) for name in ("a", "b", "c")}
    proto = model(
        ("MatMul", "x a", "p"), ("MatMul", "x b", "q"), ("Add", "p q", "s"), ("MatMul", "s c", "y"),
        inputs={"x": (4, 64)}, weights=weights,
    )  # fmt: skip
    groups = storable.by_activation(find(proto)[0])
    assert {name: [one.node for one in members] for name, members in groups.items()} == {"x": ["P", "Q"], "s": ["Y"]}
