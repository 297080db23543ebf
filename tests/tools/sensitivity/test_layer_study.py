"""`sensitivity`: figures are those of rounding by hand, causes and remedies are named, nothing else is touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.calibrators.mse import MSE
from qcompiler.cli.main import main
from qcompiler.compiler import compile
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.numerics.rounding import dequantize, quantize_int8, quantize_weight
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.runtime.session import Session
from qcompiler.statistics.histogram import Histogram
from qcompiler.tools.sensitivity.sensitivity import Sensitivity, sensitivity
from tests.kit import glu
from tests.kit.rewrite import model

Feeds = list[dict[str, Any]]
RNG = np.random.default_rng(8)


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


W1, W2 = normal(32, 48), normal(48, 24)


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def perceptron() -> onnx.ModelProto:
    return model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("n", 20, 32)},
        weights={"w1": W1, "w2": W2},
    )


def data(count: int = 3, *shape: int) -> Feeds:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((1, *(shape or (20, 32)))).astype(np.float32)} for _ in range(count)]


def by_layer(found: Sensitivity) -> dict[str, Any]:
    return {group.layers[0]: group for group in found.groups}


def test_figures_are_those_of_rounding_by_hand(tmp_path: Path) -> None:
    feeds = data(1)
    x = feeds[0]["x"]
    amax = MSE().range(Histogram.of(x))
    coarse = dequantize(quantize_int8(x, amax / 127), amax / 127)
    rounded = dequantize(*quantize_weight(W1, 1), 1)
    hidden, output = x @ W1, np.maximum(x @ W1, 0) @ W2
    found = sensitivity(saved(tmp_path, perceptron()), data=feeds, formats="int8")
    effect = by_layer(found)["H"].effects["int8"]
    assert effect.weights_db == pytest.approx(sqnr_of(hidden, x @ rounded - hidden), abs=0.01)
    assert effect.activations_db == pytest.approx(sqnr_of(hidden, coarse @ W1 - hidden), abs=0.01)
    assert effect.layer_db == pytest.approx(sqnr_of(hidden, coarse @ rounded - hidden), abs=0.01)
    alone = np.maximum(coarse @ rounded, 0) @ W2
    assert effect.outputs_db == pytest.approx(sqnr_of(output, alone - output), abs=0.01)


def test_the_sum_predicts_the_whole_and_the_rest(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(), formats="int8,fp8")
    for name in found.formats:
        alone = [10 ** (-group.effects[name].outputs_db / 10) for group in found.groups]
        assert found.predicted_db[name] == pytest.approx(-10 * np.log10(sum(alone)), abs=1e-6)
        assert found.groups[0].effects[name].rest_db == pytest.approx(-10 * np.log10(sum(alone[1:])), abs=1e-6)
        assert found.groups[-1].effects[name].rest_db > 100
    first = [group.effects["int8"].outputs_db for group in found.groups]
    assert first == sorted(first)
    assert sum(group.share for group in found.groups) == pytest.approx(1)


def test_weight_formats_have_no_activation_error(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(1), formats=["nf4", "e5m2"])
    for group in found.groups:
        effect = group.effects["nf4"]
        assert (effect.activations_db, effect.limit) == (None, "weights")
        assert effect.layer_db == effect.weights_db
        assert group.effects["e5m2"].activations_db is not None
    assert all("nf4" not in group.helps and "e5m2" not in group.helps for group in found.groups)  # no engine has them


@pytest.mark.parametrize("size", [128, 32])
def test_int4_errs_as_much_as_the_weights_that_int4_weight_stores(size: int, tmp_path: Path) -> None:
    weights = {"w1": normal(256, 48), "w2": normal(48, 24)}
    proto = model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("n", 20, 256)},
        weights=weights,
    )
    path, feeds = saved(tmp_path, proto), data(2, 20, 256)
    recipe = Recipe(
        target="onnxruntime", precision="int4-weight", weight_only=WeightOnlyTable(method="rtn", block_size=size)
    )
    effect = by_layer(sensitivity(path, data=feeds, formats="int4", recipe=recipe))["H"].effects["int4"]
    result = compile.quantize(path, data=feeds, recipe=recipe, output=tmp_path / "out.onnx")
    (row,) = (one for one in result.manifest["weight_only"]["layers"] if one["node"] == "H")
    assert row["block"] == size
    assert effect.weights_db == pytest.approx(row["output_db"], abs=0.01)


def test_the_cause_is_named_weights_or_activations(tmp_path: Path) -> None:
    spread = normal(32, 48)
    spread[5] *= 300  # one input channel: a scale per output channel must hold it
    feeds = data(2)
    for feed in feeds:
        feed["x"][..., 5] = 0
    path = saved(tmp_path, model(("MatMul", "x w", "y"), inputs={"x": ("n", 20, 32)}, weights={"w": spread}))
    assert sensitivity(path, data=feeds).groups[0].effects["int8"].limit == "weights"
    for feed in feeds:
        feed["x"][..., 5] = 1
        feed["x"][..., 6] = 100
    path = saved(tmp_path, model(("MatMul", "x w", "y"), inputs={"x": ("n", 20, 32)}, weights={"w": normal(32, 48)}))
    (group,) = sensitivity(path, data=feeds).groups
    assert group.effects["int8"].limit == "activations"
    assert group.channel == 6
    assert group.channels is not None
    assert group.channels > 20


def test_layers_that_share_an_activation_are_one_group(tmp_path: Path) -> None:
    weights = {name: normal(32, 32) for name in ("q", "k", "v")}
    proto = model(
        *(("MatMul", f"x {name}", f"{name}.o") for name in weights),
        ("Sum", "q.o k.o v.o", "y"),
        inputs={"x": ("n", 20, 32)},
        weights=weights,
    )
    (group,) = sensitivity(saved(tmp_path, proto), data=data(2)).groups
    assert group.layers == ("Q.O", "K.O", "V.O")
    assert group.macs == 3 * 20 * 32 * 32
    one = group.effects["int8"]
    assert one.outputs_db == pytest.approx(one.layer_db, abs=1.5)  # independent errors of three equal parts


def test_smoothing_and_qfem_are_named_where_they_are_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path, glu.stack(channels=glu.OUTLIERS, spiking=glu.SPIKING, layers=3))
    found = by_layer(sensitivity(path, data=glu.feeds(2), formats="int8"))
    for layer in glu.SPIKING:
        group = found[f"L{layer}.DOWN"]
        assert "qfem" in group.helps
        assert group.token == "position 0 (id 0)"
        assert group.tokens > 100
    assert "qfem" not in found["L0.DOWN"].helps
    for layer in range(3):
        group = found[f"L{layer}.Q"]
        assert group.helps[0] == "smooth-quant"
        assert group.channel in range(len(glu.OUTLIERS))
        assert group.effects["int8"].limit == "activations"


def test_convolutions_and_gemms_with_bias_and_turned_weights_are_studied(tmp_path: Path) -> None:
    proto = model(
        ("Conv", "x w1 b1", "c", {"pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", "c", "p"),
        ("Flatten", "p", "f"),
        ("Transpose", "w2", "t", {"perm": [1, 0]}),
        ("MatMul", "f t", "m"),
        ("Gemm", "m w3 b3", "g", {"transB": 1}),
        ("Softmax", "g", "y", {"axis": -1}),
        inputs={"x": ("n", 16, 8, 8)},
        weights={
            "w1": normal(32, 16, 3, 3), "b1": normal(32), "w2": normal(24, 32), "w3": normal(20, 24), "b3": normal(20),
        },
    )  # fmt: skip
    found = sensitivity(saved(tmp_path, proto), data=data(2, 16, 8, 8), formats="int8,fp8,e5m2,int4,nf4,fp4")
    assert set(by_layer(found)) == {"C", "M", "G"}
    for group in found.groups:
        figures = {name: effect.layer_db for name, effect in group.effects.items()}
        assert 30 < figures["int8"] < 60
        assert figures["fp8"] > figures["e5m2"] + 3
        assert 10 < figures["fp4"] < 40
    last = by_layer(found)["G"].effects["int8"]
    assert last.outputs_db == pytest.approx(last.layer_db, abs=3)  # logits, not probabilities


def test_the_model_file_is_not_touched_and_its_outputs_do_not_move(tmp_path: Path) -> None:
    path = saved(tmp_path, perceptron())
    before, feed = hashlib.sha256(path.read_bytes()).hexdigest(), data(1)[0]
    reference = Session(path).run(feed)["y"]
    first, second = (sensitivity(path, data=data(3)).to_json() for _ in range(2))
    assert first == second
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    np.testing.assert_array_equal(Session(path).run(feed)["y"], reference)


def test_what_is_kept_is_not_studied(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(1), recipe=Recipe(keep=("^H$",)))
    assert set(by_layer(found)) == {"Y"}
    assert found.refused == {"kept": 1}


def test_a_batch_counts_as_its_samples(tmp_path: Path) -> None:
    path = saved(tmp_path, perceptron())
    feeds = data(3)
    batch = [{"x": np.concatenate([feed["x"] for feed in feeds])}]
    found, same = (sensitivity(path, data=one) for one in (feeds, batch))
    for first, second in zip(found.groups, same.groups, strict=True):
        assert first.effects["int8"].outputs_db == pytest.approx(second.effects["int8"].outputs_db, abs=0.01)
    assert "ranges from 1 feed, errors on 3 samples" in same.data


def test_a_model_without_layers_to_quantize_says_why(tmp_path: Path) -> None:
    path = saved(tmp_path, model(("Relu", "x", "y")))
    with pytest.raises(ModelError, match="nothing in m.onnx can be quantized.*no Conv, Gemm or MatMul"):
        sensitivity(path, data=data(1, 4))
    with pytest.raises(ModelError, match="nothing in m.onnx can be quantized.*--keep '.'"):
        sensitivity(saved(tmp_path, perceptron()), data=data(1), recipe=Recipe(keep=(".",)))


def test_data_and_formats_are_checked(tmp_path: Path) -> None:
    path = saved(tmp_path, perceptron())
    with pytest.raises(DataError, match="'x'"):
        sensitivity(path, data=[{"z": np.zeros(3, np.float32)}])
    with pytest.raises(UsageError, match="there is no format 'int9'"):
        sensitivity(path, data=data(1), formats="int9")
    feeds = data(1)
    feeds[0]["x"][0, 0, 0] = np.nan
    with pytest.raises(DataError):
        sensitivity(path, data=feeds)


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in data(4)]))
    return ["sensitivity", str(saved(tmp_path, perceptron())), "--data", str(tmp_path / "data.npz")]


def test_the_command_shows_a_table_and_what_cannot_be_built(line: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--formats", "int8,e5m2", "--samples", "2"]) == 0
    out, err = capfd.readouterr()
    assert "not buildable: TensorRT has no E5M2 type" in out
    assert "ranges from 2 feeds" in " ".join(out.split())
    assert [row for row in out.splitlines() if row.strip().startswith(("H ", "Y "))]
    assert "study" in err


def test_the_command_prints_json_and_writes_a_report(
    line: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "new" / "r.html"
    assert main([*line, "--json", "--report", str(report), "--keep", "^Y$"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [row["format"] for row in found["formats"]] == ["int8", "fp8"]
    (group,) = found["groups"]
    assert group["layers"] == ["H"]
    assert group["effects"]["int8"]["limit"] in ("activations", "both")
    page = report.read_text(encoding="utf8")
    assert page.startswith("<!doctype html>")
    assert "m.onnx: sensitivity" in page
    assert "http" not in page
    assert "<code" in page


def test_names_of_the_model_are_escaped_in_the_report(tmp_path: Path) -> None:
    proto = perceptron()
    proto.graph.node[0].name = "<script>alert(1)</script>"
    np.savez(tmp_path / "d.npz", x=data(1)[0]["x"])
    line = ["sensitivity", str(saved(tmp_path, proto)), "--data", str(tmp_path / "d.npz"), "--quiet"]
    assert main([*line, "--report", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ("--formats int8,fp9", 2, "there is no format 'fp9': did you mean 'fp8'?"),
        ("--format int8", 2, "did you mean '--formats'?"),
        ("--samples 0", 2, "recipe key 'samples' = 0"),
        ("--keep .", 3, "can be quantized"),
        ("--target tensorrt-rtx:sm90", 6, "TensorRT-RTX has no sm90"),
    ],
)
def test_mistakes_end_with_one_paragraph(
    line: list[str], capfd: pytest.CaptureFixture[str], more: str, code: int, says: str
) -> None:
    assert main([*line, *more.split(), "--quiet"]) == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_a_report_that_cannot_be_written_is_known_before_the_study(
    line: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*line, "--report", str(tmp_path / "file" / "r.html")]) == 2
    assert "observe" not in capfd.readouterr().err


def test_data_is_needed(line: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(line[:2]) == 2
    assert "one of the arguments --data --text is required" in capfd.readouterr().err


def test_an_interruption_leaves_nothing(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("qcompiler.tools.sensitivity.layer_study.Study.run", interrupt)
    before = sorted(tmp_path.rglob("*"))
    assert main([*line, "--report", str(tmp_path / "r.html"), "--quiet"]) == 130
    assert capfd.readouterr().err == "interrupted: nothing was written\n"
    assert sorted(tmp_path.rglob("*")) == before
