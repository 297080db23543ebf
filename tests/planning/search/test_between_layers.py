"""What a plan gets on top: quantized shortcuts, one scale a group, both within the accuracy that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.compile import CompileResult, quantize
from qcompiler.engines.base import Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.planning.placement.shortcuts import Shortcut
from qcompiler.planning.search import between_layers
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.target import DType
from tests.kit.rewrite import model

RNG = np.random.default_rng(11)
SAME = {"pads": [1, 1, 1, 1]}


def weight(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual block, a downsampling one, and a Concat whose parts differ in range."""
    proto = model(
        ("Conv", "x w0", "s", SAME),
        ("Relu", "s", "a"),
        ("Conv", "a w1", "b", SAME),
        ("Add", "b a", "c"),
        ("Relu", "c", "d"),
        ("Conv", "d w2", "e0", SAME),
        ("Relu", "e0", "e1"),
        ("Conv", "e1 w6", "e", SAME),
        ("Conv", "d w3", "f"),
        ("Add", "f e", "g"),
        ("Relu", "g", "h"),
        ("Conv", "h w4", "i", SAME),
        ("Relu", "i", "j"),
        ("Concat", "h j", "k", {"axis": 1}),
        ("Conv", "k w5", "y"),
        inputs={"x": ("n", 16, 12, 12)},
        weights={
            "w0": weight(32, 16, 3, 3), "w1": weight(32, 32, 3, 3), "w2": weight(32, 32, 3, 3),
            "w6": weight(32, 32, 3, 3), "w3": weight(32, 32, 1, 1),
            "w4": 3 * weight(32, 32, 3, 3), "w5": weight(32, 64, 1, 1),
        },
    )  # fmt: skip
    path = tmp_path_factory.mktemp("source") / "m.onnx"
    onnx.save(proto, path)
    return path


FEEDS = [{"x": np.random.default_rng(i).standard_normal((1, 16, 12, 12)).astype(np.float32)} for i in range(6)]
GIVEN = Recipe(safety=SafetyTable(target_sqnr_db=20), calibrator="minmax")


def quantized(source: Path, folder: Path, target: str, recipe: Recipe = GIVEN) -> CompileResult:
    return quantize(source, data=FEEDS, recipe=recipe.replace(target=target), output=folder / "m.qdq.onnx")


def readers(model: onnx.ModelProto, op: str) -> dict[str, list[str]]:
    return {node.name: list(node.input) for node in model.graph.node if node.op_type == op}


@pytest.fixture(scope="module")
def full(source: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    return quantized(source, tmp_path_factory.mktemp("full"), "tensorrt")


def test_shortcuts_are_read_through_pairs_and_the_plan_says_so(full: CompileResult) -> None:
    assert full.plan.reads == {"C": (1,), "G": (0,)}
    for add, conv, shortcut in (("C", "B", "a"), ("G", "E", "f")):
        decision = full.plan.decisions[add]
        assert (decision.op, decision.precision, decision.rule) == ("Add", DType.FP16, "residual")
        assert decision.why.startswith(f"fuses with '{conv}': its shortcut '{shortcut}' is quantized")
    adds = readers(onnx.load(full.qdq_path), "Add")
    assert adds["C"] == ["b", "a/dequantized/fp16"]
    assert adds["G"] == ["f/dequantized/fp16", "e"]


def test_a_group_has_one_range_the_largest_and_says_whose(full: CompileResult) -> None:
    h, k = full.plan.quantizers["h"], full.plan.quantizers["k"]
    assert h.amax == k.amax == k.observed
    assert (h.observed or 0) < (k.observed or 0)
    assert (h.calibrator, k.calibrator) == ("shared:k", "minmax")
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(full.qdq_path).graph.initializer}
    assert stored["h/scale"] == stored["k/scale"] == np.float32(k.amax / 127)


def test_the_parser_takes_and_builds_what_is_written_for_tensorrt(full: CompileResult, tmp_path: Path) -> None:
    engine = TensorRTRTX(("sm89",))
    assert engine.check(full.qdq_path) == []
    shape = (1, 16, 12, 12)
    built = engine.build(full.qdq_path, tmp_path / "m.engine", [Profile({"x": (shape, shape, shape)})])
    assert built.path.stat().st_size > 0


def test_rtx_shares_ranges_and_leaves_shortcuts_alone_with_a_reason(source: Path, tmp_path: Path) -> None:
    found = quantized(source, tmp_path, "tensorrt-rtx")
    assert found.plan.reads == {}
    assert found.plan.quantizers["h"].calibrator == "shared:k"
    assert "f" not in found.plan.quantizers
    decision = found.plan.decisions["C"]
    assert (decision.rule, decision.precision) == ("residual-float", DType.FP16)
    assert "tensorrt-rtx writes 'B' as floats" in decision.why


def test_onnx_runtime_keeps_a_range_for_each_tensor(source: Path, tmp_path: Path) -> None:
    found = quantized(source, tmp_path, "onnxruntime")
    assert not any(one.calibrator.startswith("shared:") for one in found.plan.quantizers.values())


def test_a_shortcut_that_costs_too_much_stays_float_with_the_figure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between_layers, "LOSS_DB", -30.0)  # the outputs would have to get better
    found = quantized(source, tmp_path, "tensorrt", GIVEN.replace(safety=SafetyTable(target_sqnr_db=60, min_share=1)))
    assert found.plan.reads == {}
    decision = found.plan.decisions["G"]
    assert decision.rule == "residual-float"
    assert "the outputs fall below" in decision.why
    assert not any(one.calibrator.startswith("shared:") for one in found.plan.quantizers.values())


@pytest.mark.parametrize("best", range(8))
def test_the_largest_good_number_is_found(best: int) -> None:
    tried: list[int] = []

    def good(count: int) -> bool:
        tried.append(count)
        return count <= best

    assert between_layers.largest(7, good) == best
    assert len(tried) <= 4
    assert between_layers.largest(0, good) == 0


def with_a_dead_shortcut(folder: Path) -> Path:
    """A residual Add whose shortcut is a Relu of what is always negative."""
    proto = model(
        ("Conv", "x w0", "a", SAME),
        ("Conv", "x w1 low", "s0", SAME),
        ("Relu", "s0", "s"),
        ("Conv", "a w2", "b", SAME),
        ("Add", "b s", "c"),
        ("Relu", "c", "d"),
        ("Conv", "d w3", "y", SAME),
        inputs={"x": ("n", 16, 12, 12)},
        weights={
            "w0": weight(32, 16, 3, 3), "w1": weight(32, 16, 3, 3), "low": np.full(32, -50, np.float32),
            "w2": weight(32, 32, 3, 3), "w3": weight(32, 32, 3, 3),
        },
    )  # fmt: skip
    onnx.save(proto, folder / "dead.onnx")
    return folder / "dead.onnx"


def test_a_shortcut_that_was_zero_in_all_samples_gets_no_range(tmp_path: Path) -> None:
    found = quantized(with_a_dead_shortcut(tmp_path), tmp_path, "tensorrt")
    assert "s" not in found.plan.quantizers
    decision = found.plan.decisions["C"]
    assert (decision.rule, decision.precision) == ("residual-float", DType.FP16)
    assert "its shortcut 's' was 0 in all 5 calibration samples" in decision.why


def test_a_shortcut_beside_a_convolution_that_came_quantized_stays_as_it_is() -> None:
    ours, theirs = Shortcut("A", "C", "s", 1), Shortcut("B", "D", "t", 1)
    left, (refused,) = between_layers._seen([ours, theirs], [], {}, {"s"})
    assert left == [ours]
    assert (refused.node, refused.rule) == ("B", "residual-float")
    assert "'D' came quantized" in refused.why


def test_onnx_runtime_leaves_a_convolution_float_that_wrote_nothing_but_zeros(tmp_path: Path) -> None:
    found = quantized(with_a_dead_shortcut(tmp_path), tmp_path, "onnxruntime")
    assert "s" not in found.plan.quantizers
    decision = found.plan.decisions["S0"]
    assert (decision.rule, decision.precision) == ("zero", DType.FP32)
    assert "what it writes needs a range, and 's' was 0 in all 5 calibration samples" in decision.why


def test_an_attention_whose_values_were_zero_stays_float_with_that_reason(tmp_path: Path) -> None:
    shapes = {"x": ("n", 2, 64, 32), "side": ("n", 2, 64, 32)}
    proto = model(
        ("Transpose", "x", "kt", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "x kt", "s"),
        ("Softmax", "s", "p", {"axis": -1}),
        ("MatMul", "p side", "o"),
        ("Transpose", "o", "t", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "t flat", "r"),
        ("MatMul", "r w", "m"),
        ("Add", "m bias", "h"),
        ("MatMul", "h w", "y"),
        inputs=shapes,
        weights={"flat": np.array([0, 64, 64]), "w": weight(64, 64), "bias": weight(64, 1)[:, 0]},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    rng = np.random.default_rng(2)
    feeds = [
        {"x": rng.standard_normal((1, 2, 64, 32)).astype(np.float32), "side": np.zeros((1, 2, 64, 32), np.float32)}
        for _ in range(4)
    ]
    found = quantize(
        tmp_path / "m.onnx",
        data=feeds,
        recipe=Recipe(target="tensorrt-rtx:sm89", attention="int8", allow_broken=True),
        output=tmp_path / "m.qdq.onnx",
    )
    assert "no range is known, for 'side' was 0 in all 3 calibration samples" in found.plan.decisions["O"].why
    assert {one.rule for one in found.plan if one.node in ("M", "Y")} == {"zero", "constant"}
