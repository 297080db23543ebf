"""SmoothQuant and QFeM in the pipeline, on a decoder with planted outliers and on the same without them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import QfemTable, SafetyTable, SmoothQuantTable
from qcompiler.target import DType
from tests.kit import glu
from tests.kit.rewrite import model

EVERYTHING = SafetyTable(target_sqnr_db=199.0, min_share=1.0)  # no layer goes back for accuracy alone


class Setup:
    """The two networks as files, and what becomes of them, compiled once for each recipe; results are only read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._feeds = glu.feeds(12)
        self._made: list[tuple[str, Recipe, compile.CompileResult]] = []
        onnx.save(glu.stack(), folder / "plain.onnx")
        onnx.save(glu.stack(channels=glu.OUTLIERS, spiking=glu.SPIKING), folder / "planted.onnx")

    def quantize(self, which: str, **changes: object) -> compile.CompileResult:
        """Compiles 'plain' or 'planted', everything in INT8 but what the recipe's tables keep high."""
        recipe = Recipe(target="tensorrt-rtx:sm89", high_precision="fp32", safety=EVERYTHING).replace(**changes)
        for *asked, result in self._made:
            if asked == [which, recipe]:
                return result
        output = self._folder / f"{len(self._made)}.onnx"
        result = compile.quantize(self._folder / f"{which}.onnx", data=self._feeds, recipe=recipe, output=output)
        self._made.append((which, recipe, result))
        return result


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("glu"))


def sqnr(result: compile.CompileResult) -> float:
    assert result.verification is not None
    return result.verification.outputs[0].sqnr_db or 0.0


OFF = {"smooth_quant": SmoothQuantTable(alpha="off"), "qfem": QfemTable(alpha="off")}


def test_both_together_reach_the_network_without_outliers(setup: Setup) -> None:
    reference = sqnr(setup.quantize("plain", smooth_quant=SmoothQuantTable(), qfem=QfemTable(alpha="off")))
    without = sqnr(setup.quantize("planted", **OFF))
    both = setup.quantize("planted")
    assert without < reference - 15
    assert sqnr(both) > reference - 0.5
    assert both.plan.share() > 0.8
    spared = [one for one in both.plan if one.rule == "qfem"]
    assert [one.node for one in spared] == ["L1.DOWN", "L2.DOWN"]
    assert all("times its median" in one.why for one in spared)


def test_the_manifest_tells_what_smoothing_and_qfem_did(setup: Setup) -> None:
    result = setup.quantize("planted")
    smoothed, spared = result.manifest["smooth_quant"], result.manifest["qfem"]
    assert smoothed["folded"] + smoothed["skipped"] == len(smoothed["groups"])
    assert smoothed["inserted"] == 0
    assert smoothed["tried"] == {}  # weights will be fitted: nothing is tried against it
    folded = [one for one in smoothed["groups"] if one["how"] == "absorbed"]
    assert folded
    assert all(0 < one["alpha"] <= 1 for one in folded)
    assert [point["layers"] for point in spared["curve"]][:2] == [0, 1]
    assert [one["tensor"] for one in spared["chosen"]] == ["l1.glu", "l2.glu"] or len(spared["chosen"]) == 2
    assert all(one["tokens"][0]["id"] == glu.TOKEN for one in spared["chosen"])
    assert {row["tensor"] for row in result.manifest["outliers"]} >= {one["tensor"] for one in spared["chosen"]}
    assert next(one for one in result.manifest["passes"] if "smooth-quant" in one["pass"])["relative_error"] < 1e-4


def test_a_given_alpha_is_used_for_every_group(setup: Setup) -> None:
    result = setup.quantize("planted", smooth_quant=SmoothQuantTable(alpha=0.6), qfem=QfemTable(alpha=100.0))
    groups = result.manifest["smooth_quant"]["groups"]
    assert {one["alpha"] for one in groups if one["how"]} == {0.6}
    assert result.manifest["qfem"]["alpha"] == 100.0
    assert len(result.manifest["qfem"]["chosen"]) == 2


def test_alphas_of_single_layers_stand_over_the_rest(setup: Setup) -> None:
    wanted = SmoothQuantTable(alpha="off", layers={r"\.DOWN$": 0.4})
    groups = setup.quantize("planted", smooth_quant=wanted).manifest["smooth_quant"]["groups"]
    assert {one["alpha"] for one in groups if one["readers"][0].endswith(".DOWN")} == {0.4}
    assert {one["alpha"] for one in groups if not one["readers"][0].endswith(".DOWN")} == {None}


def test_spared_layers_can_store_int8_weights(setup: Setup) -> None:
    result = setup.quantize("planted", qfem=QfemTable(alpha=100.0, weights="int8"))
    assert result.plan.precision("L1.DOWN") is DType.FP32
    stored = [t for t in result.model.graph.tensors().values() if t.name.startswith("l1.down") and t.dtype == np.int8]
    assert stored
    assert sqnr(result) > sqnr(setup.quantize("planted", **OFF))


def test_a_model_that_is_well_behaved_keeps_all_its_layers_quantized(setup: Setup) -> None:
    result = setup.quantize("plain")
    assert not [one for one in result.plan if one.rule == "qfem"]
    assert result.manifest["qfem"]["chosen"] == []


def test_weights_are_clipped_on_request_only_where_outputs_gain(setup: Setup) -> None:
    plain = sqnr(setup.quantize("plain", **OFF))
    assert sqnr(setup.quantize("plain", **OFF, weight_clip="mse")) > plain - 0.5


@cache
def _wrong() -> tuple[dict[str, object], ...]:
    return ({"alpha": 1.5}, {"alpha": "sometimes"}, {"layers": {"(": 0.5}}, {"layers": {"x": 2.0}})


@pytest.mark.parametrize("number", range(4))
def test_what_smoothing_cannot_take_is_refused(number: int) -> None:
    with pytest.raises(UsageError, match="allowed is"):
        SmoothQuantTable(**_wrong()[number])  # type: ignore[arg-type]


def test_convolutions_are_smoothed_on_request_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "conv.onnx"
    onnx.save(
        model(
            ("Conv", "x w1 b1", "a"),
            ("Relu", "a", "r"),
            ("Conv", "r w2", "y", {"pads": [1, 1, 1, 1]}),
            inputs={"x": ("n", 16, 12, 12)},
            weights={
                "w1": (rng.normal(size=(32, 16, 1, 1)) * rng.uniform(0.1, 20, (32, 1, 1, 1))).astype(np.float32),
                "b1": rng.normal(size=32).astype(np.float32),
                "w2": rng.normal(size=(16, 32, 3, 3)).astype(np.float32),
            },
        ),
        path,
    )
    data = [{"x": rng.normal(size=(1, 16, 12, 12)).astype(np.float32)} for _ in range(8)]

    def groups(convolutions: bool) -> dict[str, dict[str, object]]:
        recipe = Recipe(
            high_precision="fp32",
            smooth_quant=SmoothQuantTable(alpha=0.5, convolutions=convolutions),
            safety=EVERYTHING,
        )
        result = compile.quantize(path, data=data, recipe=recipe, output=tmp_path / "q.onnx")
        rows = (result.manifest["smooth_quant"] or {"groups": []})["groups"]
        return {row["tensor"]: row for row in rows}

    assert groups(convolutions=False) == {}
    smoothed = groups(convolutions=True)
    assert smoothed["r"]["how"] == "absorbed"
    assert "no producer can absorb it" in str(smoothed["x"]["why"])


def test_qfem_goes_by_the_metric_of_the_user(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "error.py").write_text(
        "import numpy as np\n"
        "HIGHER_IS_BETTER = False\n"
        "METRIC = 'error of the first half'\n"
        "runs = []\n"
        "def error(run):\n"
        "    from tests.kit import glu\n"
        "    outputs = [run(feeds)[0] for feeds in glu.feeds(2)]\n"
        "    runs.append(1)\n"
        "    return 1.0 + float(np.mean([np.abs(one).mean() for one in outputs]))\n"
    )
    result = setup.quantize(
        "planted", smooth_quant=SmoothQuantTable(alpha="off"), metric=f"{tmp_path / 'error.py'}:error"
    )
    found = result.manifest["qfem"]
    assert found["metric"] == "error of the first half"
    assert len({point["score"] for point in found["curve"]}) > 1
    assert all(point["loss"] is not None for point in found["curve"])


def test_the_manifest_has_the_ranges_along_the_residual_stream(setup: Setup) -> None:
    rows = setup.quantize("planted").manifest["residuals"]
    assert {row["kind"] for row in rows} >= {"feed-forward"}
    assert all(row["branch_amax"] > 0 for row in rows)
