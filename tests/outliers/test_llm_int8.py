"""LLM.int8() in the pipeline, static and with a scale per token, on a decoder with planted outliers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from qcompiler.cli.main import main
from qcompiler.compiler import compile
from qcompiler.data.source import open_source
from qcompiler.errors import UsageError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs
from qcompiler.outliers import llm_int8
from qcompiler.passes.channels.llm_int8 import LlmInt8
from qcompiler.plan import Candidate
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import LlmInt8Table, QfemTable, SafetyTable, SmoothQuantTable
from qcompiler.report import html, terminal
from qcompiler.statistics import rows as recorded
from qcompiler.statistics.observe import observe
from qcompiler.statistics.outliers import Outliers
from qcompiler.statistics.points import Points
from qcompiler.target import DType, parse_target
from qcompiler.verification.equivalence import UNDONE
from tests.kit import glu
from tests.kit.rewrite import content, doubling, model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


EVERYTHING = SafetyTable(target_sqnr_db=199.0, min_share=1.0)
ALONE = {"safety": EVERYTHING, "smooth_quant": SmoothQuantTable(alpha="off"), "qfem": QfemTable(alpha="off")}
FEEDS = glu.feeds(6)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("glu") / "planted.onnx"
    onnx.save(glu.stack(channels=glu.OUTLIERS, spiking=(1,), layers=2), path)
    return path


def quantize(source: Path, folder: Path, **changes: object) -> compile.CompileResult:
    recipe = Recipe(target="onnxruntime").replace(**{**ALONE, **changes})
    return compile.quantize(source, data=FEEDS, recipe=recipe, output=folder / "out.onnx")


@pytest.fixture(scope="module")
def plain(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> compile.CompileResult:
    """Everything in INT8, for ONNX Runtime."""
    return quantize(planted, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def apart(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> compile.CompileResult:
    """The same with outlier channels apart, in the default layout."""
    return quantize(planted, tmp_path_factory.mktemp("apart"), llm_int8=LlmInt8Table(threshold="auto"))


def sqnr(result: compile.CompileResult) -> float:
    assert result.verification is not None
    return result.verification.outputs[0].sqnr_db or 0.0


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "tensorrt-rtx:sm89"])
def test_few_channels_apart_bring_back_what_outliers_took(
    target: str, plain: compile.CompileResult, apart: compile.CompileResult, planted: Path, tmp_path: Path
) -> None:
    without, found = plain, apart
    if target != "onnxruntime":
        without = quantize(planted, tmp_path, target=target)
        found = quantize(planted, tmp_path, target=target, llm_int8=LlmInt8Table(threshold="auto"))
    assert sqnr(found) > max(sqnr(without), 0) + 15
    assert found.plan.share() > 0.9
    rows = [one for one in found.plan if one.rule == "llm-int8"]
    assert rows
    assert all(not one.precision.quantized and one.node.endswith("/outliers") for one in rows)
    assert "multiplied apart from 'L0.Q'" in next(one.why for one in rows if one.node == "L0.Q/outliers")
    told = found.manifest["llm_int8"]
    assert 0 < told["macs_share"] < 0.05
    assert told["layers"] == len(rows)
    norms = next(group for group in told["groups"] if group["readers"][0] == "L0.Q")
    assert len(norms["channels"]) == len(glu.OUTLIERS)
    assert norms["db"] > norms["plain_db"] + 20
    spike = next(group for group in told["groups"] if group["readers"][0] == "L1.DOWN")
    assert len(spike["channels"]) >= glu.PAIRS
    assert next(one for one in found.manifest["passes"] if "llm-int8" in one["pass"])["relative_error"] < 1e-4


def test_an_engine_multiplies_them_apart_as_promised(planted: Path, tmp_path: Path) -> None:
    recipe = Recipe(target="tensorrt-rtx:sm89", llm_int8=LlmInt8Table(threshold=6.0), strict=True).replace(**ALONE)
    found = compile.compile(planted, data=FEEDS, recipe=recipe, output=tmp_path / "out.engine")
    audit, told = found.manifest["audit"], found.manifest["llm_int8"]
    assert audit["ok"]
    assert audit["confirmed"] == audit["promised"] == len(found.plan.quantized())
    assert audit["nodes"]["L0.Q"] == "int8"
    assert audit["nodes"]["L0.Q/outliers"] in ("float", "generated")
    kernels = told["kernels"]
    assert kernels["own"] + kernels["fused"] >= 1
    assert kernels["own"] < kernels["kernels"] == audit["kernels"]
    assert "LLM.int8()" in html.render(found.manifest)
    assert any("channels apart" in str(row) for row in dict(terminal._summary_rows(found.manifest)).values())


@pytest.mark.parametrize("layout", ["gather", "split"])
def test_other_layouts_compute_as_well(
    layout: str, apart: compile.CompileResult, planted: Path, tmp_path: Path
) -> None:
    found = quantize(planted, tmp_path, llm_int8=LlmInt8Table(threshold="auto", layout=layout))
    assert {group["layout"] for group in found.manifest["llm_int8"]["groups"]} <= {layout, ""}
    assert sqnr(found) == pytest.approx(sqnr(apart), abs=2)


def test_only_layers_that_were_asked_for_are_split(planted: Path, tmp_path: Path) -> None:
    asked = LlmInt8Table(threshold=6.0, layers=(r"^L0\.Q$",))
    found = quantize(planted, tmp_path, llm_int8=asked)
    assert [group["readers"] for group in found.manifest["llm_int8"]["groups"]] == [["L0.Q", "L0.K", "L0.V"]]
    assert {one.node for one in found.plan if one.rule == "llm-int8"} == {f"L0.{name}/outliers" for name in "QKV"}


def test_products_are_joined_again_where_both_stay_in_high_precision(planted: Path, tmp_path: Path) -> None:
    """A net that asks for more than INT8 can give takes layers back as a whole."""
    net = SafetyTable(target_sqnr_db=150.0, min_share=0.3)
    found = quantize(planted, tmp_path, safety=net, llm_int8=LlmInt8Table(threshold="auto"))
    joined = found.manifest["llm_int8"]["joined"]
    assert joined
    names = {node.name for node in found.model.graph.nodes}
    assert all(f"{name}/outliers" not in names and f"{name}/outliers" not in found.plan.decisions for name in joined)
    assert all(f"{one.node.removesuffix('/outliers')}" not in joined for one in found.plan if one.rule == "llm-int8")
    assert all(not found.plan.decisions[name].precision.quantized for name in joined)


def test_nothing_is_split_unless_asked(plain: compile.CompileResult) -> None:
    assert plain.manifest["llm_int8"] is None
    assert not [node for node in plain.model.graph.nodes if "/outliers" in node.name]


def test_where_nothing_is_worth_it_the_model_stays_as_it_is(tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "plain.onnx")
    found = quantize(tmp_path / "plain.onnx", tmp_path, llm_int8=LlmInt8Table(threshold="auto"))
    told = found.manifest["llm_int8"]
    assert told["layers"] == 0
    assert all("as they are" in group["why"] or "not worth it" in group["why"] for group in told["groups"])
    assert "worth a product" in html.render(found.manifest)


def test_a_layer_with_too_many_outliers_is_left_alone(planted: Path, tmp_path: Path) -> None:
    found = quantize(planted, tmp_path, llm_int8=LlmInt8Table(threshold=0.5))
    reasons = [group["why"] for group in found.manifest["llm_int8"]["groups"]]
    assert any("more than llm_int8.most allows" in why for why in reasons)


def chosen(folder: Path, values: Floats, weights: Floats, wanted: LlmInt8Table, *, seen: bool = True) -> llm_int8.Split:
    """What is decided for one layer from its rows."""
    proto = model(("MatMul", "x w", "y"), inputs={"x": values.shape}, weights={"w": weights})
    one = Outliers(-1)
    one.update(values)
    onnx.save(proto, folder / "layer.onnx")
    layer = models.load(folder / "layer.onnx")
    rows = recorded.record_rows(layer, {"x": -1}, [{"x": values}])
    groups = {"x": [Candidate("Y", "MatMul", "x", "w", 1)]}
    (found,) = llm_int8.choose_channels(layer, groups, rows, {"x": one} if seen else {}, wanted)
    return found


def test_the_fewest_channels_are_taken_that_reach_what_is_wanted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, weights = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 80), (80, 20)))
    values[:, [7, 30]] *= 200
    weights[[7, 30]] /= 200
    found = chosen(tmp_path, values, weights, LlmInt8Table(threshold="auto", sqnr_db=30))
    assert found.channels == (7, 30)
    assert found.plain_db < 15 < 30 < found.db
    assert found.amax > 200 > found.rest
    assert chosen(tmp_path, values, weights, LlmInt8Table(threshold=50.0)).channels == (7, 30)
    assert chosen(tmp_path, values, weights, LlmInt8Table(threshold=1e6)).why == "no channel reaches 1e+06"
    assert "as they are" in chosen(tmp_path, values, weights, LlmInt8Table(threshold="auto", sqnr_db=5)).why
    assert "not worth it" in chosen(tmp_path, values, weights, LlmInt8Table(threshold="auto", most=0.015)).why
    assert (
        chosen(tmp_path, values, weights, LlmInt8Table(threshold="auto"), seen=False).why
        == "nothing was observed of its activation"
    )


def test_a_split_that_misses_the_check_is_undone(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, scope = models.load(planted), Scope(parse_target("onnxruntime"))
    layers = scope.layers(loaded)
    inputs: Inputs = {"ids": (np.dtype(np.int64), ("batch", "length"))}
    points = Points.of(outliers={one.activation: -1 for one in layers.found})
    observed = observe(loaded, points, open_source(FEEDS, inputs))
    options = llm_int8.LlmInt8Options(LlmInt8Table(threshold=6.0), DType.INT8, by_row=False)
    doubling(monkeypatch, LlmInt8)
    apart = llm_int8.split_outliers(loaded, layers, observed, options, scope, lambda *_: [])
    assert (apart.model, apart.layers, apart.observed) == (loaded, layers, observed)
    assert apart.reports[0].undone
    assert not any(one.channels for one in apart.splits.decided)
    assert UNDONE in {one.why for one in apart.splits.decided}


def test_the_room_gives_another_model_and_leaves_what_it_was_given(planted: Path) -> None:
    loaded, scope = models.load(planted), Scope(parse_target("onnxruntime"))
    layers = scope.layers(loaded)
    found, refused = layers
    inputs: Inputs = {"ids": (np.dtype(np.int64), ("batch", "length"))}
    source = open_source(FEEDS, inputs)
    points = Points.of(outliers={one.activation: -1 for one in found})
    observed = observe(loaded, points, source)
    before = content(loaded.graph)
    names = list(observed.histograms)
    options = llm_int8.LlmInt8Options(LlmInt8Table(threshold=6.0), DType.INT8, by_row=False)
    apart = llm_int8.split_outliers(
        loaded, layers, observed, options, scope, lambda _, after: [one.activation for one in after]
    )
    assert content(loaded.graph) == before
    assert list(observed.histograms) == list(observed.outliers) == names
    new = {one.activation for one in apart.layers.found} - set(names)
    assert new
    assert new <= apart.observed.histograms.keys() & apart.observed.outliers.keys()
    rests = {reader: one.rest for one in apart.splits.decided for reader in one.readers if one.channels}
    for one in apart.layers.found:
        if one.activation in new:
            assert apart.observed.histograms[one.activation].amax >= np.float32(rests[one.node])
    (report,) = apart.reports
    assert apart.errors[report.name] < 1e-4
    assert {one.rule for one in apart.layers.refused if one not in refused} == {"llm-int8"}


@pytest.mark.parametrize(
    "table", [{"threshold": "6"}, {"threshold": -1}, {"layout": "sum"}, {"most": 2}, {"layers": ("(",)}]
)
def test_what_the_table_cannot_take_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="allowed is"):
        LlmInt8Table(**table)  # type: ignore[arg-type]


def test_the_command_line_takes_a_threshold(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", ids=np.concatenate([feed["ids"] for feed in FEEDS]))
    arguments = ["quantize", str(planted), "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out.onnx")]
    arguments += ["--precision", "int8-dynamic", "--quiet"]  # a preset for ONNX Runtime
    assert main([*arguments, "--llm-int8", "6.0"]) == 0
    assert "channels apart" in " ".join(capsys.readouterr().out.split())
    assert main([*arguments, "--llm-int8", "sometimes"]) == 2


# --- With a scale per token ---


def test_dynamic_needs_no_data(planted: Path, tmp_path: Path) -> None:
    recipe = Recipe(precision="int8-dynamic", target="onnxruntime")
    found = compile.quantize(planted, recipe=recipe, output=tmp_path / "out.onnx")
    products = [one for one in found.plan if one.rule == "dynamic"]
    assert len(products) == 15
    assert found.plan.share() == 1.0
    assert sum(node.op == "MatMulInteger" for node in found.model.graph.nodes) == len(products)
    assert found.verification is None


def test_dynamic_holds_spikes_but_not_channels_and_llm_int8_holds_both(
    apart: compile.CompileResult, planted: Path, tmp_path: Path
) -> None:
    alone = quantize(planted, tmp_path, precision="int8-dynamic")
    both = quantize(planted, tmp_path, precision="int8-dynamic", llm_int8=LlmInt8Table(threshold="auto"))
    assert sqnr(both) > max(sqnr(alone), 0) + 15
    assert sqnr(both) > sqnr(apart)


@pytest.mark.parametrize("high", ["fp32", "fp16"])
def test_an_engine_runs_dynamic_products_in_int8(high: str, planted: Path, tmp_path: Path) -> None:
    recipe = Recipe(precision="int8-dynamic", target="tensorrt-rtx:sm89", high_precision=high, strict=True)
    found = compile.compile(planted, data=FEEDS, recipe=recipe, output=tmp_path / "out.engine")
    audit = found.manifest["audit"]
    assert audit["ok"]
    assert audit["compiled"]["int8"] == audit["confirmed"] == 15


def test_dynamic_keeps_what_has_no_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = model(
        ("Conv", "x w", "c", {"pads": [1, 1, 1, 1]}),
        ("Relu", "c", "r"),
        ("Flatten", "r", "f"),
        ("Gemm", "f v b", "g", {"transB": 1}),
        ("MatMul", "g small", "y"),
        inputs={"x": ("n", 3, 6, 6)},
        weights={
            "w": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
            "v": rng.standard_normal((32, 576)).astype(np.float32),
            "b": rng.standard_normal(32).astype(np.float32),
            "small": rng.standard_normal((32, 4)).astype(np.float32),
        },
        opset=21,
    )
    onnx.save(proto, tmp_path / "conv.onnx")
    recipe = Recipe(precision="int8-dynamic", target="onnxruntime", keep=())
    data = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    found = compile.quantize(tmp_path / "conv.onnx", data=data, recipe=recipe, output=tmp_path / "out.onnx")
    assert {one.node: one.rule for one in found.plan} == {"C": "no-rows", "G": "dynamic", "Y": "tiny"}
    assert sqnr(found) > 30
    kept = compile.quantize(
        tmp_path / "conv.onnx",
        data=data,
        recipe=recipe.replace(keep=("G",), allow_broken=True),
        output=tmp_path / "out.onnx",
    )
    assert kept.plan.decisions["G"].rule == "kept"
    assert kept.manifest["verdict"]["verdict"] == "broken"
    assert "nothing of what was asked for was quantized" in kept.manifest["verdict"]["reasons"][0]
