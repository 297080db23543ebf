from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import onnx
import pytest

from qcompiler.engines.audit import Audit, Kind, audit
from qcompiler.engines.base import Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.target import DType
from tests.engines.conftest import Build
from tests.kit import graphs
from tests.kit.graphs import Builder

BATCH = Profile({"x": ((1, 128), (8, 128), (64, 128))})


def _audit(build: Build, graph: Builder, *nodes: str, precision: DType = DType.INT8) -> Audit:
    model, engine = build(graph)
    return audit(engine.path, model, dict.fromkeys(nodes, precision))


def _kinds(found: Audit) -> list[tuple[Kind, str]]:
    return [(one.kind, one.node) for one in found.mismatches]


@pytest.mark.parametrize("axis", [1, None], ids=["channel", "tensor"])
def test_a_well_placed_matmul_is_confirmed(axis: int | None, build: Build) -> None:
    found = _audit(build, graphs.matmul(axis=axis), "mm")
    assert found.confirmed == ("mm",)
    assert found.ok
    assert found.share() == 1.0
    assert found.counts() == {"int8": 1}
    assert found.kernels >= 2
    assert found.sms == ("sm89",)


@pytest.mark.parametrize("axis", [0, None], ids=["channel", "tensor"])
def test_a_well_placed_convolution_is_confirmed(axis: int | None, build: Build) -> None:
    found = _audit(build, graphs.conv(axis), "conv")
    assert found.confirmed == ("conv",)
    assert found.ok


@pytest.mark.parametrize("axis", [None, 1], ids=["tensor", "channel"])
def test_fp8_is_confirmed_as_fp8_and_not_as_int8(axis: int | None, build: Build) -> None:
    model, engine = build(graphs.fp8(axis))
    assert audit(engine.path, model, {"mm": DType.FP8}).ok
    assert _kinds(audit(engine.path, model, {"mm": DType.INT8})) == [(Kind.NOT_CONFIRMED, "mm")]


@pytest.mark.parametrize(
    "graph",
    [graphs.matmul(axis=0), graphs.channel_activations(), graphs.weight_only()],
    ids=["scales along K", "scales of activation columns", "float activations"],
)
def test_what_becomes_float_without_a_word_is_not_confirmed(graph: Builder, build: Build) -> None:
    found = _audit(build, graph, "mm")
    assert _kinds(found) == [(Kind.NOT_CONFIRMED, "mm")]
    assert found.confirmed == ()
    assert found.share() == 0.0
    assert "promised int8, but compiled to" in found.mismatches[0].text


@pytest.mark.parametrize("rows", [64, 1], ids=["a product", "a generated kernel for one row"])
def test_weights_that_are_only_stored_low_are_told_apart(rows: int, build: Build) -> None:
    assert _audit(build, graphs.weight_only(rows)).compiled == {"mm": "woq-int8"}


@pytest.mark.parametrize(("axis", "op"), [(1, "Conv"), (1, "ConvTranspose")])
def test_convolutions_with_a_wrong_axis_or_transposed_are_not_confirmed(axis: int, op: str, build: Build) -> None:
    assert _kinds(_audit(build, graphs.conv(axis, op), "conv")) == [(Kind.NOT_CONFIRMED, "conv")]


def test_half_accumulators_are_found(build: Build) -> None:
    found = _audit(build, graphs.half_scales(), "mm")
    assert found.confirmed == ("mm",)
    assert _kinds(found) == [(Kind.HALF_ACCUMULATOR, "mm")]
    assert not found.ok


def test_half_accumulators_of_fp8_are_found(build: Build) -> None:
    found = _audit(build, graphs.half_scales(dtype=ml_dtypes.float8_e4m3fn), "mm", precision=DType.FP8)
    assert found.confirmed == ("mm",)
    assert _kinds(found) == [(Kind.HALF_ACCUMULATOR, "mm")]
    assert "raw fp8 accumulators" in found.mismatches[0].text


def test_fp8_products_side_by_side_accumulate_in_half_unless_their_weights_share_a_scale(build: Build) -> None:
    apart = _audit(build, graphs.fp8_siblings(1, 2, 3), *"qkv", precision=DType.FP8)
    assert _kinds(apart) == [(Kind.HALF_ACCUMULATOR, name) for name in "kqv"]
    shared = _audit(build, graphs.fp8_siblings(2, 2, 2), *"qkv", precision=DType.FP8)
    assert shared.confirmed == ("q", "k", "v")
    assert shared.ok


@pytest.mark.parametrize("axis", [None, 0], ids=["tensor", "channel"])
@pytest.mark.parametrize("sm", ["sm89", "sm120"])
def test_fp8_convolutions_are_confirmed_and_scaled_before_they_are_stored(
    axis: int | None, sm: str, build: Build
) -> None:
    model, engine = build(graphs.fp8_conv(axis), sms=(sm,))
    found = audit(engine.path, model, {"conv": DType.FP8})
    assert found.confirmed == ("conv",)
    assert found.ok


def test_convolutions_with_half_scales_accumulate_in_float(build: Build) -> None:
    assert _audit(build, graphs.half_scales(conv=True), "mm").ok


def test_blocked_weights_with_quantized_activations_are_found(build: Build) -> None:
    found = _audit(build, graphs.blocked(), "mm")
    assert _kinds(found) == [(Kind.BAD_BROADCAST, "mm")]
    assert "1x384" in found.mismatches[0].text


def test_products_fused_side_by_side_are_all_confirmed(build: Build) -> None:
    model, engine = build(graphs.qkv(), BATCH)
    assert audit(engine.path, model, dict.fromkeys("qkv", DType.INT8)).confirmed == ("q", "k", "v")


def test_a_node_that_the_compiler_merged_with_its_twin_is_confirmed(build: Build) -> None:
    found = _audit(build, graphs.twins(), "first", "second")
    assert found.confirmed == ("first", "second")
    assert found.ok


def test_twins_are_recognised_in_external_data(tmp_path: Path) -> None:
    model = graphs.twins().save(tmp_path / "m.onnx", external=True)
    engine = TensorRTRTX().build(model, tmp_path / "m.engine")
    assert audit(engine.path, model, dict.fromkeys(["first", "second"], DType.INT8)).ok
    proto = onnx.load(model, load_external_data=False)
    assert audit(engine.path, proto, dict.fromkeys(["first", "second"], DType.INT8)).ok


def test_an_unlisted_node_without_a_twin_is_not_confirmed(build: Build) -> None:
    model, engine = build(graphs.twins())
    proto = onnx.load(model)
    for node in proto.graph.node:
        if node.name == "first":
            node.op_type = "Gemm"
    found = audit(engine.path, proto, {"first": DType.INT8, "nowhere": DType.INT8, "second": DType.INT8})
    assert found.confirmed == ("second",)
    assert _kinds(found) == [(Kind.NOT_CONFIRMED, "first"), (Kind.NOT_CONFIRMED, "nowhere")]
    assert "does not list it" in found.mismatches[0].text


def test_products_in_branches_are_audited(build: Build) -> None:
    found = _audit(build, graphs.branches(), "then_mm", "else_mm")
    assert found.confirmed == ("then_mm", "else_mm")
    assert found.ok


def test_one_listing_serves_several_sms(build: Build) -> None:
    model, engine = build(graphs.matmul(), sms=("sm80", "sm89", "sm120"))
    found = audit(engine.path, model, {"mm": DType.INT8})
    assert found.ok
    assert found.sms == ("sm80", "sm89", "sm120")


def test_every_profile_must_confirm_and_kernels_are_counted_once(build: Build) -> None:
    model, one = build(graphs.matmul("batch"), BATCH)
    single = audit(one.path, model, {"mm": DType.INT8})
    model, two = build(graphs.matmul("batch"), BATCH, Profile({"x": ((1, 128), (1, 128), (2, 128))}))
    double = audit(two.path, model, {"mm": DType.INT8})
    assert single.ok
    assert double.ok
    assert single.kernels == double.kernels


def test_precisions_that_are_not_quantized_promise_nothing(build: Build) -> None:
    found = _audit(build, graphs.weight_only(), "mm", precision=DType.FP16)
    assert found.ok
    assert found.promised == 0


def test_a_plan_without_a_listing_is_never_a_success(tmp_path: Path) -> None:
    plan = tmp_path / "m.engine"
    plan.write_bytes(b"some other version's plan" * 100)
    found = audit(plan, graphs.matmul().model(), {"mm": DType.INT8})
    assert _kinds(found) == [(Kind.NO_LISTING, "")]
    assert found.share() == 0.0
    assert found.listed is None
    assert not found.ok


def test_what_is_wrong_is_a_reason_to_doubt(build: Build, tmp_path: Path) -> None:
    assert _audit(build, graphs.matmul(), "mm").doubts() == ()
    in_float = _audit(build, graphs.matmul(axis=0), "mm", "nowhere")
    assert in_float.in_float() == ("mm",)  # what is not listed may be anything
    (text,) = in_float.doubts()
    assert text == "2 of 2 quantized nodes are not confirmed by the engine's listing: 'mm', 'nowhere'"
    assert any("overflow" in one for one in _audit(build, graphs.half_scales(), "mm").doubts())
    plan = tmp_path / "m.engine"
    plan.write_bytes(b"some other version's plan" * 100)
    unread = audit(plan, graphs.matmul().model(), {"mm": DType.INT8})
    assert not unread.listed
    assert unread.in_float() == ()
    assert "none of 1 promises" in unread.doubts()[0]


def test_the_audit_is_plain_data(build: Build) -> None:
    data = json.loads(json.dumps(_audit(build, graphs.half_scales(), "mm").to_json()))
    assert data["promised"] == data["confirmed"] == 1
    assert data["nodes"] == {"mm": "int8"}
    assert data["mismatches"][0]["kind"] == "half-accumulator"


def test_kernels_name_the_nodes_of_the_plan_that_they_compute(build: Build) -> None:
    model, engine = build(graphs.conv())
    names = ["elsewhere", *(node.name for node in onnx.load(model).graph.node)]
    found = audit(engine.path, model, dict.fromkeys(names, DType.INT8))
    place = names.index("conv")
    products = [one for one in found.launches if place in one.nodes and one.what.startswith("corrltn int8 int8")]
    assert products
    assert all(0 not in one.nodes and list(one.nodes) == sorted(one.nodes) for one in found.launches)
    told = found.to_json()
    assert [(told["kinds"][kind], tuple(nodes)) for kind, *nodes in told["launches"]] == [
        (one.what, one.nodes) for one in found.launches
    ]


def test_kernels_of_a_second_profile_are_not_told_again(build: Build) -> None:
    model, one = build(graphs.matmul("batch"), BATCH)
    single = audit(one.path, model, {"mm": DType.INT8})
    model, two = build(graphs.matmul("batch"), BATCH, Profile({"x": ((1, 128), (1, 128), (2, 128))}))
    assert single.launches
    assert len(audit(two.path, model, {"mm": DType.INT8}).launches) == len(single.launches)
