"""Attention in INT8 or FP8: which parts of a graph are one, when the fused kernel takes it, and that it then does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.compile import CompileResult, compile, quantize
from qcompiler.engines.listing import read
from qcompiler.errors import UsageError
from qcompiler.planning.placement import attention
from qcompiler.planning.placement.attention import Attention, AttentionAsked
from qcompiler.planning.search import between_layers
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import Spec, model, to_graph

HEADS = 2
ASKED = Recipe(attention="int8", target="tensorrt-rtx:sm89", safety=SafetyTable(target_sqnr_db=5), calibrator="minmax")
PROJECTED: tuple[Spec, ...] = (("MatMul", "r wo", "y"),)
SIGMOID: tuple[Spec, ...] = (("Sigmoid", "r", "y"),)


def transformer(width: int = 32, tail: Sequence[Spec] = PROJECTED) -> onnx.ModelProto:
    """x [n, s, 2 · width] -> q, k, v -> softmax(q kᵀ / c + m) v -> `tail` over r [n, s, 2 · width]."""
    rng = np.random.default_rng(5)
    hidden = HEADS * width
    nodes: list[Spec] = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            ("MatMul", f"x w{name}", name),
            ("Reshape", f"{name} split", f"{name}r"),
            ("Transpose", f"{name}r", f"{name}t", {"perm": order}),
        ]
    nodes += [
        ("MatMul", "qt kt", "s"),
        ("Div", "s c", "d"),
        ("Add", "d m", "dm"),
        ("Softmax", "dm", "p", {"axis": -1}),
        ("MatMul", "p vt", "o"),
        ("Transpose", "o", "ot", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "ot join", "r"),
        *tail,
    ]
    weights: dict[str, Any] = {
        f"w{name}": (rng.standard_normal((hidden, hidden)) / np.sqrt(hidden)).astype(np.float32) for name in "qkvo"
    }
    if not any("wo" in node[1].split() for node in nodes):
        del weights["wo"]
    return model(
        *nodes,
        inputs={"x": ("n", "s", hidden), "m": ("n", 1, 1, "s")},
        weights={
            **weights,
            "split": np.array([0, 0, HEADS, width]),
            "join": np.array([0, 0, hidden]),
            "c": np.array(width**0.5, np.float32),
        },
    )


def feeds(width: int, *lengths: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(6)
    return [
        {
            "x": 2 * rng.standard_normal((1, length, HEADS * width)).astype(np.float32),
            "m": np.zeros((1, 1, 1, length), np.float32),
        }
        for length in lengths
    ]


def compiled(folder: Path, proto: onnx.ModelProto, data: Any, recipe: Recipe = ASKED) -> CompileResult:
    onnx.save(proto, folder / "m.onnx")
    return compile(folder / "m.onnx", data=data, recipe=recipe, output=folder / "m.engine")


def fused(result: CompileResult) -> list[tuple[str, ...]]:
    """Types of q, k, mask and v of the fused kernels in the engine's listing."""
    assert result.engine_path is not None
    ops = [op for one in read(result.engine_path) if not one.body for op in one.ops]
    return [tuple(op.input_types[:4]) for op in ops if "_gemm_mha" in op.name]


WHOLE = Attention("S", "O", ("qt", "kt", "p", "vt"), "r")


def test_the_two_products_around_a_softmax_are_found_through_scale_and_mask() -> None:
    assert attention.find_attentions(to_graph(transformer())) == [WHOLE]
    assert attention.tensors_for_attention(to_graph(transformer())) == ["qt", "kt", "p", "vt", "r"]


@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "x w", "s"), ("Softmax", "s", "p"), ("MatMul", "p x", "y")],
        [("MatMul", "x x", "s"), ("Softmax", "s", "p"), ("MatMul", "x p", "y")],
        [("MatMul", "x x", "s"), ("Relu", "s", "r"), ("Softmax", "r", "p"), ("MatMul", "p x", "y")],
        [("MatMul", "x x", "s"), ("Softmax", "s", "p"), ("MatMul", "p x", "o"), ("Add", "o p", "y")],
        [("Softmax", "x", "p"), ("MatMul", "p x", "y")],
    ],
    ids=["weight", "probabilities on the right", "another operator", "probabilities read twice", "no first product"],
)
def test_anything_else_is_no_attention(nodes: list[Spec]) -> None:
    made = model(*nodes, inputs={"x": (2, 4, 8, 8)}, weights={"w": np.ones((8, 8), np.float32)})
    assert attention.find_attentions(to_graph(made)) == []


def shapes(width: int = 32, length: int = 64) -> dict[str, tuple[int, ...]]:
    q, p = (1, HEADS, length, width), (1, HEADS, length, length)
    return {"qt": q, "kt": (*q[:2], width, length), "p": p, "vt": q}


def asked(dtype: DType, known: Any, smallest: Any = None, high: DType = DType.FP16) -> AttentionAsked:
    return AttentionAsked(dtype, known if smallest is None else smallest, known, high)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (shapes(), None),
        (shapes(16, 512), None),
        (shapes(width=128), "its heads are 128 wide, and the fused INT8 kernel takes 16, 32, 64"),
        (shapes(width=24), "its heads are 24 wide"),
        (shapes(length=513), "its sequences are up to 513 long, and the fused INT8 kernel takes 512"),
        ({**shapes(), "qt": (2, 64, 32)}, "its operands have 3 axes"),
        ({}, "are not known"),
    ],
)
def test_the_reason_names_the_part_of_the_rule_that_is_missed(known: Any, why: str | None) -> None:
    found = attention.why_not(WHOLE, asked(DType.INT8, known))
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(
    ("known", "smallest", "why"),
    [
        (shapes(), shapes(), None),
        (shapes(8, 4096), shapes(8, 32), None),
        (shapes(256), shapes(256, 32), None),
        (shapes(264), shapes(264), "its heads are 264 wide, and the fused FP8 kernel takes up to 256"),
        (shapes(), shapes(length=31), "may be as short as 31, and the fused FP8 kernel takes 32 and more"),
        (shapes(), {}, "are not known"),
    ],
)
def test_fp8_takes_other_heads_and_lengths(known: Any, smallest: Any, why: str | None) -> None:
    found = attention.why_not(WHOLE, asked(DType.FP8, known, smallest))
    assert found is None if why is None else why in str(found)


def test_fp8_needs_a_quantized_result_in_fp32_graphs_only() -> None:
    assert [asked(DType.FP8, {}, high=high).result for high in (DType.FP16, DType.BF16, DType.FP32)] == [0, 0, 1]
    assert asked(DType.INT8, {}).result
    graph = to_graph(transformer())
    assert attention.reads(graph, WHOLE, (), result=False) == {"S": (0, 1), "O": (0, 1)}


def test_a_result_that_a_quantized_layer_reads_needs_no_pair_of_its_own() -> None:
    graph = to_graph(transformer())
    assert attention.reads(graph, WHOLE, {"Y"}) == {"S": (0, 1), "O": (0, 1)}
    assert attention.reads(graph, WHOLE, ()) == {"S": (0, 1), "O": (0, 1), "Y": (0,)}


@pytest.mark.parametrize("tail", [PROJECTED, SIGMOID], ids=["projected", "read by a float node"])
def test_the_engine_s_listing_has_one_fused_kernel_with_int8_operands(tail: Sequence[Spec], tmp_path: Path) -> None:
    result = compiled(tmp_path, transformer(tail=tail), feeds(32, 8, 64))
    for name in ("S", "O"):
        decision = result.plan.decisions[name]
        assert (decision.precision, decision.rule) == (DType.INT8, "attention-int8")
        assert result.manifest["audit"]["nodes"][name] == "int8"
    assert result.manifest["audit"]["ok"]
    assert [types[:2] + types[3:] for types in fused(result)] == [("int8", "int8", "int8")]


FP8 = ASKED.replace(attention="fp8", safety=SafetyTable(target_sqnr_db=5), calibrator="mse")


@pytest.mark.parametrize(
    ("high", "tail"),
    [("fp16", PROJECTED), ("fp16", SIGMOID), ("bf16", PROJECTED), ("fp32", PROJECTED), ("fp32", SIGMOID)],
    ids=["fp16", "fp16, read by a float node", "bf16", "fp32", "fp32, read by a float node"],
)
def test_fp8_attention_is_one_fused_kernel_with_fp8_operands(high: str, tail: Sequence[Spec], tmp_path: Path) -> None:
    recipe = FP8.replace(precision="fp8", target="tensorrt-rtx:sm89,sm120", high_precision=high)
    result = compiled(tmp_path, transformer(tail=tail), feeds(32, 32, 96), recipe)
    for name in ("S", "O"):
        decision = result.plan.decisions[name]
        assert (decision.precision, decision.rule) == (DType.FP8, "attention-fp8")
        assert decision.why == "its attention is fused in FP8"
        assert result.manifest["audit"]["nodes"][name] == "fp8"
    assert result.manifest["audit"]["ok"]
    assert [types[:2] + types[3:] for types in fused(result)] == [("fp8_e4m3", "fp8_e4m3", "fp8_e4m3")]
    assert {result.plan.quantizers[name].calibrator for name in WHOLE.reads} == {"mse{format=fp8}"}


def test_fp8_attention_stands_between_int8_layers(tmp_path: Path) -> None:
    result = compiled(tmp_path, transformer(), feeds(32, 32, 96), FP8)
    assert {result.plan.decisions[name].precision for name in "QKVY"} == {DType.INT8}
    assert result.manifest["audit"]["ok"]
    assert [types[:2] + types[3:] for types in fused(result)] == [("fp8_e4m3", "fp8_e4m3", "fp8_e4m3")]
    recipe = FP8.replace(high_precision="fp32")  # where the fused kernel would have to write FP8, not INT8
    other = quantize(tmp_path / "m.onnx", data=feeds(32, 32, 96), recipe=recipe, output=tmp_path / "m.qdq.onnx")
    assert "a layer reads its tensor 'r' in INT8" in other.plan.decisions["O"].why
    assert other.plan.reads == {}


def test_the_shortest_sequence_of_the_profile_counts_for_fp8(tmp_path: Path) -> None:
    result = compiled(tmp_path, transformer(), feeds(32, 8, 64), FP8)
    why = result.plan.decisions["S"].why
    assert why.startswith("it stays float although FP8 was asked for: its sequences may be as short as 8")
    assert [types[:2] for types in fused(result)] == [("half", "half")]


def test_attention_is_float_by_default_and_the_plan_says_why(tmp_path: Path) -> None:
    result = compiled(tmp_path, transformer(), feeds(32, 8, 64), ASKED.replace(attention="float"))
    assert result.plan.reads == {}
    assert (result.plan.decisions["S"].precision, result.plan.decisions["S"].rule) == (DType.FP16, "attention")
    assert "costs accuracy" in result.plan.decisions["S"].why
    assert [types[:2] for types in fused(result)] == [("half", "half")]


def test_attention_that_misses_the_rule_stays_whole_in_float_with_the_reason(tmp_path: Path) -> None:
    result = compiled(tmp_path, transformer(width=24), feeds(24, 8, 64))
    why = result.plan.decisions["O"].why
    assert why.startswith("it stays float although INT8 was asked for: its heads are 24 wide")
    assert result.plan.decisions["O"].rule == "attention"
    assert result.plan.reads == {}


def test_the_longest_sequence_of_the_profile_counts(tmp_path: Path) -> None:
    onnx.save(transformer(), tmp_path / "m.onnx")
    longest = {"x": ((1, 8, 64), (1, 64, 64), (1, 600, 64)), "m": ((1, 1, 1, 8), (1, 1, 1, 64), (1, 1, 1, 600))}
    recipe = ASKED.replace(shapes=longest)
    result = quantize(tmp_path / "m.onnx", data=feeds(32, 8, 64), recipe=recipe, output=tmp_path / "m.qdq.onnx")
    assert "its sequences are up to 600 long" in result.plan.decisions["S"].why


def test_attention_that_costs_too_much_stays_float_with_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_layers, "ATTENTION_LOSS_DB", -30.0)  # the outputs would have to get better
    onnx.save(transformer(), tmp_path / "m.onnx")
    recipe = ASKED.replace(safety=SafetyTable(target_sqnr_db=90, min_share=1))
    result = quantize(tmp_path / "m.onnx", data=feeds(32, 64, 64), recipe=recipe, output=tmp_path / "m.qdq.onnx")
    assert result.plan.decisions["S"].rule == "attention"
    assert "in INT8, the outputs fall below" in result.plan.decisions["S"].why
    assert result.plan.reads == {}
    assert not {"qt", "kt", "p", "vt"} & result.plan.quantizers.keys()


def test_a_pair_that_onnx_runtime_turns_to_uint8_by_halves_still_runs() -> None:
    proto = model(
        ("QuantizeLinear", "x s z", "q", {"output_dtype": onnx.TensorProto.INT8}),
        ("DequantizeLinear", "q s z", "y"),
        weights={"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)},
        opset=21,
    )
    y = Session(to_graph(proto)).run({"x": np.array([[-1.3, 0, 0.2, 99]] * 2, np.float32)})["y"]
    np.testing.assert_array_equal(y[0], [-1.5, 0, 0, 63.5])


def test_onnx_runtime_has_no_such_kernel() -> None:
    with pytest.raises(UsageError, match="'attention' = 'int8' needs a TensorRT target"):
        Recipe(attention="int8", target="onnxruntime")
