"""A plan that the engine does not keep changes: the engine is built once more with another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.compile import CompileResult, compile
from qcompiler.planning.placement import joint
from qcompiler.recipe.recipe import Recipe
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from tests.kit.rewrite import model


def heads() -> onnx.ModelProto:
    """Attention of q, k and v from one product, which is cut right behind it."""
    rng = np.random.default_rng(5)
    weights: dict[str, Any] = {"w": (rng.standard_normal((128, 384)) / 11).astype(np.float32)}
    weights |= {"heads": np.array([0, 0, 4, 32]), "even": np.array([128] * 3), "root": np.float32(6)}
    return model(
        ("MatMul", "x w", "joint"),
        ("Split", "joint even", "q k v", {"axis": -1}),
        *(("Reshape", f"{one} heads", f"{one}r") for one in "qkv"),
        *(("Transpose", f"{one}r", f"{one}t", {"perm": [0, 2, 1, 3]}) for one in "qkv"),
        ("Transpose", "kt", "ktt", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "qt ktt", "s"),
        ("Div", "s root", "d"),
        ("Softmax", "d", "p", {"axis": -1}),
        ("MatMul", "p vt", "y"),
        inputs={"x": ("n", 64, 128)},
        weights=weights,
        opset=18,
    )


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of that model and its data; the cut is one that nobody has foreseen."""
    monkeypatch.setattr(joint, "is_joint", lambda _: False)
    onnx.save(heads(), tmp_path / "m.onnx")
    x = np.random.default_rng(6).standard_normal((24, 64, 128)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    return tmp_path


def compiled(case: Path) -> CompileResult:
    recipe = Recipe(target="tensorrt-rtx:sm89")
    return compile(case / "m.onnx", data=str(case / "c.npz"), recipe=recipe, output=case / "m.engine")


def test_one_weight_scale_keeps_the_layer_in_int8(case: Path) -> None:
    result = compiled(case)
    found = result.manifest
    assert result.plan.axes["JOINT"] is None
    assert result.plan.decisions["JOINT"].why.startswith("one weight scale")
    assert (found["audit"]["promised"], found["audit"]["confirmed"]) == (1, 1)
    assert found["macs"]["quantized_share"] == found["macs"]["promised_share"] > 0.5
    assert not [text for text in found["warnings"] if "audit" in text]
    stored = onnx.load(result.qdq_path)
    weight = next(node for node in stored.graph.node if node.output[0].startswith("w/dequantized"))
    scale = next(one for one in stored.graph.initializer if one.name == weight.input[1])
    assert list(scale.dims) == []  # the file is that of the second plan, as the engine and the figures are


def test_where_the_other_plan_misses_a_gate_the_first_one_stays(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((True, False))  # of the first plan, of the second
    monkeypatch.setattr(Gates, "hold", lambda _, __: next(answers))
    result = compiled(case)
    found = result.manifest
    assert next(answers, None) is None
    assert result.plan.axes["JOINT"] == 1
    assert isinstance(result.verification, Verification)
    assert (found["audit"]["promised"], found["audit"]["confirmed"]) == (1, 0)
    assert found["macs"]["promised_share"] > 0.5 > found["macs"]["quantized_share"] == 0
    assert [text for text in found["warnings"] if "not-confirmed: JOINT" in text]
