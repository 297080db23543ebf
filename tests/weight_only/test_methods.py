"""Weights in few bits in the pipeline: every method on a small decoder, what is stored, and what the manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.data.source import open_source
from qcompiler.ir import edit, linear
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.qdq import block_size, dequantized
from qcompiler.numerics import blocks
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.runtime.session import Session
from qcompiler.statistics.observe import Observations
from qcompiler.support.outlook import Outlook
from qcompiler.target import DType, parse_target
from qcompiler.weight_only import gptq, methods
from qcompiler.weight_only.storable import WeightOnlyOptions
from tests.kit import glu
from tests.kit.rewrite import content, model, to_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs

    from qcompiler.compiler.compile import CompileResult

    Quantize = Callable[..., CompileResult]


METHODS = ("rtn", "mse", "awq", "gptq", "awq+gptq")
FEEDS = glu.feeds(6)
PRODUCTS = [*(f"L0.{one}" for one in ("Q", "K", "V", "O", "GATE", "UP", "DOWN")), "LOGITS"]


@pytest.fixture(scope="module")
def quantize(tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """Quantizes a decoder of one layer with outlier channels, once for each way that is asked for."""
    folder = tmp_path_factory.mktemp("weights")
    path = folder / "glu.onnx"
    onnx.save(glu.stack(channels=glu.OUTLIERS, layers=1), path)

    @cache
    def run(precision: str, target: str = "onnxruntime", data: bool = True, **table: Any) -> compile.CompileResult:
        recipe = Recipe(target=target, precision=precision, weight_only=WeightOnlyTable(**table))
        return compile.quantize(
            path, data=FEEDS if data else None, recipe=recipe, output=folder / f"{len(list(folder.iterdir()))}.onnx"
        )

    return run


def sqnr(result: compile.CompileResult) -> float:
    assert result.verification is not None
    return result.verification.outputs[0].sqnr_db or 0.0


def rows(result: compile.CompileResult) -> dict[str, dict[str, Any]]:
    return {one["node"]: one for one in result.manifest["weight_only"]["layers"]}


def backs(result: compile.CompileResult) -> dict[str, gs.Node]:
    """The DequantizeLinear in front of each product."""
    found = {node.name: graphs.producer(node.inputs[1]) for node in result.model.graph.nodes if node.name in PRODUCTS}
    return {name: node for name, node in found.items() if node is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("precision", "stored"), [("int4-weight", ml_dtypes.int4), ("int8-weight", np.int8)])
def test_every_product_is_stored_and_no_activation_is_touched(
    precision: str, stored: Any, method: str, quantize: Quantize
) -> None:
    result = quantize(precision, method=method, block_size=32)
    found = backs(result)
    assert sorted(found) == sorted(PRODUCTS)
    for name, node in found.items():
        assert graphs.dtype_of(node.inputs[0]) == np.dtype(stored)
        assert block_size(node) == (32 if precision == "int4-weight" else 0)
        decision = result.plan.decisions[name]
        assert decision.rule == "weight-only"
        assert decision.precision is (DType.INT4_WEIGHT if precision == "int4-weight" else DType.INT8_WEIGHT)
        assert f"by {method}, activation and product in fp32" in decision.why
    assert not [node for node in result.model.graph.nodes if node.op == "QuantizeLinear"]
    assert {one["method"] for one in rows(result).values()} == {method}
    assert {one["block"] for one in rows(result).values()} == {32 if precision == "int4-weight" else None}


def test_each_method_errs_as_its_place_says(quantize: Quantize) -> None:
    found = {method: quantize("int4-weight", method=method, block_size=32) for method in METHODS}
    errors = {method: sqnr(result) for method, result in found.items()}
    assert errors["rtn"] > 10
    assert errors["gptq"] > errors["rtn"]  # five samples of 32 tokens that are nearly white: there is little to gain
    assert errors["awq"] > errors["rtn"] + 3  # of outlier channels, of which this model has three
    assert errors["awq+gptq"] > errors["awq"] + 0.5
    assert sqnr(quantize("int4-weight", block_size=32)) > errors["awq+gptq"] - 0.1
    gains = {method: result.manifest["weight_only"]["gain_db"] for method, result in found.items()}
    assert gains["rtn"] == 0.0
    assert gains["awq"] > 3
    assert gains["awq+gptq"] > gains["awq"] + 0.3
    assert gains["awq+gptq"] == pytest.approx(errors["awq+gptq"] - errors["rtn"], abs=1.5)  # what is said is true
    assert sqnr(quantize("int8-weight", method="awq", block_size=32)) > errors["awq+gptq"] + 10


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_without_calibration_the_blocks_are_those_of_the_weight_alone(method: str, quantize: Quantize) -> None:
    rounded = {"rtn": blocks.round_to_nearest, "mse": blocks.clip_by_error}[method]
    result = quantize("int4-weight", method=method, block_size=64)
    floats = {node.name: linear.matrix(node) for node in _float_graph().nodes if node.name in PRODUCTS}
    for name, node in backs(result).items():
        weight = floats[name]
        assert weight is not None
        size = block_size(node) or None
        wanted = blocks.dequantize(rounded(weight, size, "int4" if size else "int8", half=False))
        np.testing.assert_array_equal(dequantized(node, np.dtype(np.float32)), wanted)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_file_computes_what_its_dequantized_weights_compute(method: str, quantize: Quantize) -> None:
    result = quantize("int4-weight", method=method, block_size=32)
    opened = models.copy(result.model)
    for node in [one for one in opened.graph.nodes if one.op == "DequantizeLinear"]:
        held = edit.add_constant(f"{node.outputs[0].name}/float", dequantized(node, np.dtype(np.float32)))
        for reader, index in graphs.consumers(node.outputs[0]):
            edit.set_input(reader, index, held)
    wanted = Session(opened).run(FEEDS[0])["logits"]
    np.testing.assert_allclose(Session(result.qdq_path).run(FEEDS[0])["logits"], wanted, rtol=1e-3, atol=1e-4)


def test_the_errors_in_the_manifest_are_those_of_the_layers_outputs(quantize: Quantize) -> None:
    result = quantize("int4-weight", method="rtn", block_size=32)
    floats = {node.name: node for node in _float_graph().nodes}
    node = floats["L0.DOWN"]
    session = Session(_float_graph(), outputs=[node.inputs[0].name])
    x = np.concatenate([session.run(feed)[node.inputs[0].name].reshape(-1, glu.INNER) for feed in FEEDS])
    weight = linear.matrix(node)
    assert weight is not None
    gap = dequantized(backs(result)["L0.DOWN"], np.dtype(np.float32)) - weight
    wanted = -10 * np.log10(np.sum((x @ gap) ** 2) / np.sum((x @ weight) ** 2))
    assert rows(result)["L0.DOWN"]["output_db"] == pytest.approx(float(wanted), abs=0.1)


def test_siblings_share_a_factor(quantize: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []
    factor = gptq.factor

    def counted(hessian: Any, **how: Any) -> gptq.Factor:
        made.append(how["size"])
        return factor(hessian, **how)

    monkeypatch.setattr(gptq, "factor", counted)
    quantize("int4-weight", method="gptq", block_size=32, damp=0.02)
    groups = 5  # q, k and v; o; gate and up; down; the logits
    assert made == [32] * groups * (2 + 1)  # each for both folds, and for all rows


def test_awq_scales_what_a_producer_can_absorb_and_says_why_not(quantize: Quantize) -> None:
    result = quantize("int4-weight", method="awq", block_size=32)
    told = result.manifest["weight_only"]
    assert {"l0.n1.out", "l0.n2.out"} <= set(told["scaled"])
    assert all(gain >= 0.05 for gain in told["scaled"].values())
    assert told["scaled"].keys().isdisjoint(told["unscaled"])
    (report,) = (one for one in result.manifest["passes"] if "smooth-quant" in one["pass"])
    assert 0 <= report["relative_error"] < 1e-4
    assert all("no scaling gains" in why or "no producer can absorb it" in why for why in told["unscaled"].values())


def test_scaling_is_left_out_of_other_methods(quantize: Quantize) -> None:
    for method in ("rtn", "mse", "gptq"):
        told = quantize("int4-weight", method=method, block_size=32).manifest
        assert told["weight_only"]["scaled"] == told["weight_only"]["unscaled"] == {}
        assert not [one for one in told["passes"] if "smooth-quant" in one["pass"]]


def test_bytes_are_those_of_integers_scales_and_zero_points(quantize: Quantize) -> None:
    result = quantize("int4-weight", method="rtn", block_size=32)
    told = result.manifest["weight_only"]
    elements = sum(one["depth"] * one["width"] for one in told["layers"])
    assert told["bytes_before"] == 4 * elements
    assert told["bytes_after"] == pytest.approx(elements / 2 + elements / 32 * 2.5, rel=1e-6)
    files = result.manifest["files"]["qdq"]["bytes"]
    assert files < told["bytes_before"] / 2


def test_options_reach_the_numbers(quantize: Quantize) -> None:
    plain = rows(quantize("int4-weight", method="gptq", block_size=32))
    for change in ({"damp": 0.5}, {"act_order": False}):
        other = rows(quantize("int4-weight", method="gptq", block_size=32, **change))
        assert other.keys() == plain.keys()
        assert any(other[name]["output_db"] != plain[name]["output_db"] for name in plain)
    told = quantize("int4-weight", method="gptq", block_size=32, damp=0.5).manifest["weight_only"]
    assert (told["damp"], told["act_order"], told["block_size"], told["storage"]) == (0.5, True, 32, "dequantize")


def test_the_default_is_the_best_that_the_data_allows(quantize: Quantize) -> None:
    found = quantize("int4-weight", block_size=32)
    told = found.manifest["weight_only"]
    assert told["method"] == "auto"
    assert sum(told["methods"].values()) == len(PRODUCTS)
    others = {method: rows(quantize("int4-weight", method=method, block_size=32)) for method in METHODS[:2]}
    for name, one in rows(found).items():
        assert one["output_db"] >= max(other[name]["output_db"] for other in others.values()) - 0.1
    assert quantize("int8-weight").manifest["weight_only"]["method"] == "auto"
    assert quantize("int4-weight", data=False).manifest["weight_only"]["method"] == "mse"


def test_without_data_weights_are_rounded_and_a_warning_says_what_is_missing(quantize: Quantize) -> None:
    result = quantize("int4-weight", data=False, method="rtn", block_size=32)
    assert result.verification is None
    assert any("no --data: weights are rounded by themselves" in text for text in result.manifest["warnings"])
    assert all(one["output_db"] is None and one["weight_db"] > 10 for one in rows(result).values())
    assert "the weight reaches" in result.plan.decisions["L0.Q"].why


def test_onnx_runtime_s_own_operator_on_request(quantize: Quantize) -> None:
    pairs = quantize("int4-weight", method="rtn", block_size=32)
    joined = quantize("int4-weight", method="rtn", block_size=32, storage="matmulnbits")
    assert [node.op for node in joined.model.graph.nodes].count("MatMulNBits") == len(PRODUCTS)
    assert sqnr(joined) == pytest.approx(sqnr(pairs), abs=0.1)


def test_a_graph_in_half_stores_scales_in_half_and_runs(quantize: Quantize) -> None:
    for precision in ("int4-weight", "int8-weight"):
        result = quantize(precision, target="tensorrt-rtx:sm89", method="mse", block_size=32)
        found = backs(result)
        assert len(found) == len(PRODUCTS)
        assert {str(graphs.dtype_of(node.inputs[1])) for node in found.values()} == {"float16"}
        assert sqnr(result) > sqnr(quantize(precision, method="mse", block_size=32)) - 1


def test_the_same_input_gives_the_same_bytes(quantize: Quantize) -> None:
    once = quantize("int4-weight", method="awq+gptq", block_size=32).qdq_path.read_bytes()
    assert quantize.__wrapped__("int4-weight", method="awq+gptq", block_size=32).qdq_path.read_bytes() == once  # type: ignore[attr-defined]


def _float_graph() -> gs.Graph:
    from tests.kit.rewrite import to_graph

    return to_graph(glu.stack(channels=glu.OUTLIERS, layers=1))


# --- Tied embeddings --------------------------------------------------------------------------------------------------

VOCABULARY, WIDTH = 256, 64


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that is read by a Gather and, transposed, gives the logits; a product of 64 by 64 between them."""
    rng = np.random.default_rng(5)
    weights = {"table": rng.standard_normal((VOCABULARY, WIDTH)), "w": rng.standard_normal((WIDTH, WIDTH)) / 8}
    path = tmp_path_factory.mktemp("tied") / "tied.onnx"
    proto = model(
        ("Gather", "table ids", "e"),
        ("MatMul", "e w", "h"),
        ("Tanh", "h", "t"),
        ("Transpose", "table", "back"),
        ("MatMul", "t back", "logits"),
        inputs={"ids": (np.int64, ("batch", "length"))},
        outputs=("logits",),
        weights={name: value.astype(np.float32) for name, value in weights.items()},
    )
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("head", "form"), [("int8", "int8 per output"), ("same", "int4 in blocks of 32"), ("float", "")]
)
def test_logits_of_a_tied_table_are_stored_as_asked_for_and_the_table_stays(
    head: str, form: str, tied: Path, tmp_path: Path
) -> None:
    feeds = [{"ids": np.random.default_rng(seed).integers(0, VOCABULARY, (1, 12))} for seed in range(4)]
    recipe = Recipe(
        target="onnxruntime",
        precision="int4-weight",
        weight_only=WeightOnlyTable(method="rtn", block_size=32, head=head),
    )
    result = compile.quantize(tied, data=feeds, recipe=recipe, output=tmp_path / "out.onnx")
    told = result.manifest["weight_only"]
    expected = {"int4 in blocks of 32": 1}
    if form:
        expected[form] = expected.get(form, 0) + 1
    assert told["forms"] == expected
    assert told["refused"] == ({} if form else {"head": 1})
    assert told["tied"] == (["LOGITS"] if form else [])
    why = result.plan.decisions["LOGITS"].why
    assert ("its numbers are the table of 'E', too" in why) == bool(form)
    assert told["tables"] == []  # ONNX Runtime would open it whole
    (table,) = (node.inputs[0] for node in result.model.graph.nodes if node.op == "Gather")
    assert graphs.dtype_of(table) == np.float32


@pytest.mark.parametrize(("tables", "copies"), [("int8", 1), ("float", 2)])
def test_for_tensorrt_a_tied_table_is_stored_once(tables: str, copies: int, tied: Path, tmp_path: Path) -> None:
    feeds = [{"ids": np.random.default_rng(seed).integers(0, VOCABULARY, (1, 12))} for seed in range(4)]
    asked = WeightOnlyTable(method="rtn", block_size=32, tables=tables)
    recipe = Recipe(target="tensorrt-rtx:sm89", precision="int4-weight", weight_only=asked, verify_samples=0)
    result = compile.quantize(tied, data=feeds, recipe=recipe, output=tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx")
    assert sum(sorted(one.dims) == [WIDTH, VOCABULARY] for one in proto.graph.initializer) == copies
    assert result.manifest["weight_only"]["tables"] == (["E"] if tables == "int8" else [])


def test_progress_counts_runs_of_the_data_and_layers(tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "glu.onnx")
    seen: dict[str, list[float]] = {}

    class Stage:
        def __init__(self, name: str, total: float | None) -> None:
            seen[name] = [total or 0.0, 0.0]
            self._name = name

        def advance(self, steps: float) -> None:
            seen[self._name][1] += steps

    class Shown:
        @contextmanager
        def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
            yield Stage(name, total)

        def expect(self, text: str, outlook: Outlook) -> None: ...

        def warn(self, text: str) -> None:
            assert any(word in text for word in ("with few rows of data", "the result is", "different samples of data"))

    recipe = Recipe(
        target="onnxruntime", precision="int4-weight", weight_only=WeightOnlyTable(method="gptq", block_size=32)
    )
    compile.quantize(
        tmp_path / "glu.onnx", data=FEEDS, recipe=recipe, output=tmp_path / "out.onnx", progress=cast(Any, Shown())
    )
    fitted = len(FEEDS) - 1  # the others judge
    assert seen["weight_only"] == [len(PRODUCTS) + fitted] * 2


@pytest.mark.parametrize("precision", ["int4-weight", "int8-weight"])
def test_the_room_gives_another_model_and_leaves_the_one_it_was_given(precision: str) -> None:
    loaded = models.Model(to_graph(glu.stack(channels=glu.OUTLIERS, layers=1)), {}, None, 10)
    before, observed = content(loaded.graph), Observations(kept=tuple(FEEDS), feeds=len(FEEDS))
    options = WeightOnlyOptions(precision, WeightOnlyTable(block_size=32), parse_target("onnxruntime"), ("LOGITS",))
    work = methods.work_of(loaded, options, feeds=len(FEEDS))
    assert [one.node for one in work.layers] == PRODUCTS[:-1]
    assert {one.node: one.rule for one in work.refused}["LOGITS"] == "kept"
    assert work.method == "auto"
    assert work.steps == len(work.layers) + (len(FEEDS) if precision == "int4-weight" else 0)
    source = open_source(FEEDS, {"ids": (np.dtype(np.int64), ("batch", "length"))})
    steps: list[float] = []
    done = methods.round_weights(loaded, work, source, observed, steps.append)
    assert content(loaded.graph) == before
    assert sum(steps) == work.steps
    assert done.stored is not None
    assert list(done.stored.weights) == PRODUCTS[:-1]
    assert done.stored.scaled
    assert done.model is not loaded
    (report,) = done.reports
    assert done.errors[report.name] < 1e-4
