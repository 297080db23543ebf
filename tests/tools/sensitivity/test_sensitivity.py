"""`sensitivity`: causes and remedies are named, and the command shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.cli.main import main
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.tools.inspect.inspection import inspect
from qcompiler.tools.sensitivity.sensitivity import sensitivity
from tests.kit import glu
from tests.kit.rewrite import model
from tests.kit.tools.studied import by_layer, data, normal, perceptron, saved


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


def test_what_is_kept_is_not_studied(tmp_path: Path) -> None:
    found = sensitivity(saved(tmp_path, perceptron()), data=data(1), recipe=Recipe(keep=("^H$",)))
    assert set(by_layer(found)) == {"Y"}
    assert found.refused == {"kept": 1}


def test_layers_that_the_compiler_leaves_float_for_their_size_are_not_studied(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w", "h"),
        ("MatMul", "h narrow", "n"),
        ("ReduceMean", "h", "pooled", {"axes": [1], "keepdims": 0}),
        ("Gemm", "pooled head", "y"),
        inputs={"x": (1, 20, 32)},
        outputs=("n", "y"),
        weights={"w": normal(32, 48), "narrow": normal(48, 4), "head": normal(48, 64)},
    )
    found = sensitivity(saved(tmp_path, proto), data=data(40))
    assert set(by_layer(found)) == {"H"}
    assert found.refused == {"tiny": 1, "gemv": 1}
    on_cpu = sensitivity(saved(tmp_path, proto), data=data(40), recipe=Recipe(target="onnxruntime"))
    inspected = inspect(saved(tmp_path, proto), data=data(40), recipe=Recipe(target="onnxruntime"))
    assert set(by_layer(on_cpu)) == {one.node for one in inspected.layers if one.quantizable}


def test_a_batch_counts_as_its_samples(tmp_path: Path) -> None:
    path = saved(tmp_path, perceptron())
    feeds = data(3)
    batch = [{"x": np.concatenate([feed["x"] for feed in feeds])}]
    found, same = (sensitivity(path, data=one) for one in (feeds, batch))
    for first, second in zip(found.groups, same.groups, strict=True):
        assert first.effects["int8"].outputs_db == pytest.approx(second.effects["int8"].outputs_db, abs=0.01)
    assert same.data == found.data == "a list of samples: ranges from 3 feeds, errors on all 3 samples; in sample"


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
    assert found["measured"] == {
        "how": "exact",
        "samples": 4,
        "of": 4,
        "runs": 44,
        "rank_correlation": {"int8": 1.0, "fp8": 1.0},
    }
    (group,) = found["groups"]
    assert (group["layers"], group["order_certain"]) == (["H"], True)
    assert group["effects"]["int8"]["error_db"] == 0.0
    assert group["effects"]["int8"]["limit"] in ("activations", "both")
    page = report.read_text(encoding="utf8")
    assert page.startswith("<!doctype html>")
    assert "m.onnx: sensitivity" in page
    assert "http" not in page
    assert "<code" in page


def test_an_estimate_says_from_how_many_samples(
    line: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in data(60)]))
    assert main([*line, "--json", "--quiet"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["measured"]["how"], found["measured"]["of"]) == ("estimate", 60)
    assert 4 <= found["measured"]["samples"] < 60
    assert f"errors estimated from {found['measured']['samples']} of 60 samples" in found["data"]
    assert all(group["effects"]["int8"]["error_db"] > 0 for group in found["groups"])
    assert main([*line, "--json", "--quiet", "--exact"]) == 0
    exact = json.loads(capfd.readouterr().out)
    assert (exact["measured"]["how"], exact["measured"]["samples"], exact["measured"]["of"]) == ("exact", 60, 60)
    assert exact["measured"]["runs"] > found["measured"]["runs"]


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
