"""The files of an engine, and what becomes of a plan that is predicted slower, or that the engine does not keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.building import Building
from qcompiler.compiler.compile import CompileResult, compile
from qcompiler.planning.costly import Descent
from qcompiler.planning.placement import joint
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.report import terminal
from qcompiler.support.file import File
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from tests.kit.cases import prepared
from tests.kit.report.pages import words
from tests.kit.rewrite import model

SMS = ("sm80", "sm86", "sm89", "sm120")


def mixed() -> onnx.ModelProto:
    """Two large products, which gain by INT8, and convolutions of few channels, which do not."""
    rng = np.random.default_rng(5)
    sizes = {"c1": (16, 16, 3, 3), "c2": (16, 16, 3, 3), "w1": (512, 2048), "w2": (2048, 512)}
    values: dict[str, Any] = {
        name: (rng.standard_normal(size) / np.sqrt(np.prod(size[:1]))).astype(np.float32)
        for name, size in sizes.items()
    }
    values["c1"], values["c2"] = values["c1"] / 3, values["c2"] / 3
    values["flat"] = np.array([256, 512])
    return model(
        ("Conv", "x c1", "a", {"pads": [1] * 4}),
        ("Relu", "a", "b"),
        ("Conv", "b c2", "c", {"pads": [1] * 4}),
        ("Relu", "c", "d"),
        ("Reshape", "d flat", "e"),
        ("MatMul", "e w1", "f"),
        ("Relu", "f", "g"),
        ("MatMul", "g w2", "y"),
        inputs={"x": (1, 16, 64, 128)},
        weights=values,
        opset=18,
    )


def compiled(folder: Path, **recipe: Any) -> CompileResult:
    """That model on random pictures."""
    if not (folder / "m.onnx").exists():
        onnx.save(mixed(), folder / "m.onnx")
        for k in range(8):
            x = np.random.default_rng(k).standard_normal((1, 16, 64, 128)).astype(np.float32)
            (folder / "data").mkdir(exist_ok=True)
            np.savez(folder / "data" / f"{k}.npz", x=x)
    smooth = SmoothQuantTable(alpha="off")
    asked = Recipe(target="tensorrt-rtx:sm89", smooth_quant=smooth, **recipe)
    return compile(folder / "m.onnx", data=str(folder / "data"), recipe=asked, output=folder / "m.engine")


def faster(record: Any) -> bool:
    return all(one["engine_us"] <= one["high_us"] for one in record["prediction"]["sms"].values())


def test_a_slower_engine_is_written_with_a_warning_and_never_silently(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    result = compile(case.source, data=str(case.data), output=case.out / "m.engine")
    found = result.manifest["prediction"]
    assert list(found["sms"]) == list(SMS)
    assert not faster(result.manifest)
    assert found["warning"] in result.manifest["warnings"]
    first = words(terminal.first_lines(result.manifest))
    assert "slower" in first.split("leaves")[0]
    assert len(result.plan.quantized()) == 3
    assert found["tried"] == []


def test_by_time_high_precision_is_chosen_with_the_reason_where_nothing_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Descent, "found", lambda _: [])
    case = prepared(tmp_path, "conv")
    recipe = Recipe(objective="time")
    result = compile(case.source, data=str(case.data), recipe=recipe, output=case.out / "m.engine")
    found = result.manifest
    assert result.plan.quantized() == []
    assert faster(found)
    assert any(one.rule == "slower" and "times as long quantized" in one.why for one in result.plan)
    assert [text for text in found["warnings"] if text.startswith("everything is in float16: --objective time")]
    assert found["verdict"]["verdict"] == "holds"
    assert found["prediction"]["tried"][-1]["kept"] is True
    stored = onnx.load(result.qdq_path)
    assert not [node for node in stored.graph.node if node.op_type == "QuantizeLinear"]
    assert case.left() == ["m.engine", "m.manifest.json", "m.qdq.onnx", "m.report.html"]


@pytest.mark.slow
def test_by_time_the_layers_that_cost_more_go_back_and_the_others_stay(tmp_path: Path) -> None:
    before = compiled(tmp_path)
    assert {one.node for one in before.plan.quantized()} == {"A", "C", "F", "Y"}
    after = compiled(tmp_path, objective="time")
    assert {one.node for one in after.plan.quantized()} == {"F", "Y"}
    assert after.plan.decisions["A"].rule == after.plan.decisions["C"].rule == "slower"
    assert faster(after.manifest)
    was, now = (one.manifest["prediction"]["sms"]["sm89"]["engine_us"] for one in (before, after))
    assert now < was
    (kept,) = (one for one in after.manifest["prediction"]["tried"] if one["kept"])
    assert kept["high"] == ["A", "C"]
    assert after.manifest["audit"]["promised"] == after.manifest["audit"]["confirmed"] == 2
    assert after.verification is not None


@pytest.mark.slow
def test_a_faster_plan_that_is_not_as_good_does_not_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Building, "_holds", lambda *_: False)
    result = compiled(tmp_path, objective="time")
    found = result.manifest["prediction"]
    assert {one.node for one in result.plan.quantized()} == {"A", "C", "F", "Y"}
    assert found["tried"]
    assert {one["kept"] for one in found["tried"]} == {False}
    assert all("less accurate" in one["why"] for one in found["tried"])


def test_single_weight_scales_that_cost_accuracy_are_tried_with_fewer_weights_and_then_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Building, "_as_good", lambda *_: False)
    case = prepared(tmp_path, "conv")
    recipe = Recipe(objective="time")
    result = compile(case.source, data=str(case.data), recipe=recipe, output=case.out / "m.engine")
    tried = result.manifest["prediction"]["tried"]
    assert tried[0]["single"]
    assert [one["kept"] for one in tried if one["single"]] == [False] * sum(bool(one["single"]) for one in tried)
    assert tried[-1]["kept"]
    assert None not in [axis for node, axis in result.plan.axes.items() if node in {"C1", "C2", "C3"}]
    assert faster(result.manifest)


def test_a_gate_on_the_share_stands_over_time(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    recipe = Recipe(objective="time", min_share=0.9)
    result = compile(case.source, data=str(case.data), recipe=recipe, output=case.out / "m.engine")
    assert result.plan.share() >= 0.9
    assert result.manifest["prediction"]["warning"] in result.manifest["warnings"]


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
def unkept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of that model and its data; the cut is one that nobody has foreseen."""
    monkeypatch.setattr(joint, "is_joint", lambda _: False)
    onnx.save(heads(), tmp_path / "m.onnx")
    x = np.random.default_rng(6).standard_normal((24, 64, 128)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    return tmp_path


def built(unkept: Path) -> CompileResult:
    recipe = Recipe(target="tensorrt-rtx:sm89")
    return compile(unkept / "m.onnx", data=str(unkept / "c.npz"), recipe=recipe, output=unkept / "m.engine")


def test_one_weight_scale_keeps_the_layer_in_int8(unkept: Path) -> None:
    result = built(unkept)
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


def test_where_the_other_plan_misses_a_gate_the_first_one_stays(unkept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firsts: list[float | None] = []

    def hold(_: Gates, verification: Verification) -> bool:
        """The first plan holds, whoever asks; another one does not."""
        firsts.append(verification.worst_sqnr_db)
        return verification.worst_sqnr_db == firsts[0]

    monkeypatch.setattr(Gates, "hold", hold)
    result = built(unkept)
    found = result.manifest
    assert len(set(firsts)) == 2
    assert result.plan.axes["JOINT"] == 1
    assert isinstance(result.verification, Verification)
    assert (found["audit"]["promised"], found["audit"]["confirmed"]) == (1, 0)
    assert found["macs"]["promised_share"] > 0.5 > found["macs"]["quantized_share"] == 0
    assert [text for text in found["warnings"] if "not-confirmed: JOINT" in text]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_for_each_gpu_beside_the_one_for_all(tmp_path: Path, workers: int) -> None:
    case = prepared(tmp_path, "conv")
    target = "tensorrt-rtx:sm86,sm120"
    found = compile(
        case.source,
        data=str(case.data),
        recipe=Recipe(target=target, engine_per_sm=True, workers=workers),
        output=case.out / "m.engine",
        cache=False,
    )
    record = found.manifest["engines"]
    assert [(one["sm"], one["name"]) for one in record] == [("sm86", "m.sm86.engine"), ("sm120", "m.sm120.engine")]
    for one in record:
        file = File.of(case.out / one["name"])
        assert (file.sha256, file.bytes) == (one["sha256"], one["bytes"])
        assert file.bytes > 1000
    assert found.manifest["engine"]["sms"] == ["sm86", "sm120"]
    assert {path.name for path in case.out.iterdir()} >= {"m.engine", "m.sm86.engine", "m.sm120.engine"}
