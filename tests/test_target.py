"""Targets: text forms, defaults of each engine, and what is refused with which exit code."""

from __future__ import annotations

import pytest

from qcompiler.errors import EngineError, UsageError
from qcompiler.target import ENGINES, RTX_SMS, DType, Target, lacking_fp8, parse_target, require_fp8


@pytest.mark.parametrize(
    "text", ["tensorrt-rtx", "tensorrt-rtx:sm89,sm120", "tensorrt", "tensorrt:sm90", "onnxruntime"]
)
def test_text_forms_read_back(text: str) -> None:
    target = parse_target(text)
    assert str(target) == text
    assert parse_target(str(target)) == target


def test_spelling_is_forgiven_and_repetition_dropped() -> None:
    assert parse_target("tensorrt-rtx: SM89 ,sm120,sm89").sms == ("sm89", "sm120")


@pytest.mark.parametrize(("engine", "high"), [("tensorrt-rtx", "fp16"), ("tensorrt", "fp16"), ("onnxruntime", "fp32")])
def test_each_engine_has_its_own_high_precision_unless_told(engine: str, high: str) -> None:
    assert parse_target(engine).high_precision == high
    assert parse_target(engine, DType.BF16).high_precision is DType.BF16


def test_every_engine_can_be_parsed_and_differs_in_what_it_takes() -> None:
    rtx, full, ort = (parse_target(engine) for engine in ENGINES)
    assert (rtx.conv_transpose, full.conv_transpose, ort.conv_transpose) == (False, True, False)
    assert rtx.typed_dequantize
    assert not full.typed_dequantize
    assert ort.unsigned_activations
    assert not rtx.unsigned_activations


@pytest.mark.parametrize("sm", RTX_SMS)
def test_every_generation_of_tensorrt_rtx_is_taken(sm: str) -> None:
    assert parse_target(f"tensorrt-rtx:{sm}").sms == (sm,)


@pytest.mark.parametrize("sm", ["sm90", "sm100", "sm70"])
def test_a_generation_that_tensorrt_rtx_lacks_is_refused_with_what_there_is(sm: str) -> None:
    with pytest.raises(EngineError, match=f"no {sm}.*sm89.*--target tensorrt") as caught:
        parse_target(f"tensorrt-rtx:sm89,{sm}")
    assert caught.value.exit_code == 6
    assert parse_target(f"tensorrt:{sm}").sms == (sm,)


@pytest.mark.parametrize("text", ["tensorrtx", "", "tensorrt-rtx:89", "tensorrt:smart", "onnxruntime:sm89"])
def test_everything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert caught.value.exit_code == 2


def test_gpus_of_the_same_formats_are_one_target_to_a_search() -> None:
    ada, blackwell, ampere, turing = (parse_target(f"tensorrt-rtx:{sm}") for sm in ("sm89", "sm120", "sm86", "sm75"))
    assert ada.of_its_kind == blackwell.of_its_kind == parse_target("tensorrt-rtx")
    assert ampere.of_its_kind == turing.of_its_kind == parse_target("tensorrt-rtx:sm86,sm120").of_its_kind
    assert lacking_fp8(ampere.of_its_kind)
    assert not lacking_fp8(ada.of_its_kind)
    assert {one.anywhere for one in (ada, blackwell, ampere, turing)} == {parse_target("tensorrt-rtx")}
    assert ada.of_its_kind != parse_target("tensorrt-rtx:sm89", DType.FP32).of_its_kind


def test_types_know_whether_they_need_a_scale() -> None:
    assert {dtype for dtype in DType if dtype.quantized} == set(DType) - {DType.FP32, DType.FP16, DType.BF16}
    assert {dtype for dtype in DType if dtype.weight_only} == {DType.INT8_WEIGHT, DType.INT4_WEIGHT, DType.FP4_WEIGHT}


def test_a_target_is_a_value() -> None:
    assert len({Target("tensorrt"), Target("tensorrt"), Target("tensorrt", ("sm89",))}) == 2


@pytest.mark.parametrize(
    ("text", "without", "advice"),
    [
        ("tensorrt-rtx:sm80,sm89,sm120", ("sm80",), "--target tensorrt-rtx:sm89,sm120,"),
        ("tensorrt-rtx:sm75,sm86", ("sm75", "sm86"), "--target tensorrt-rtx:sm89,"),
        ("tensorrt:sm80,sm90", ("sm80",), "--target tensorrt:sm90,"),
    ],
)
def test_fp8_on_gpus_that_lack_it_is_an_engine_error_that_names_them(
    text: str, without: tuple[str, ...], advice: str
) -> None:
    target = parse_target(text)
    assert lacking_fp8(target) == without
    with pytest.raises(EngineError) as caught:
        require_fp8(target)
    assert caught.value.exit_code == 6
    assert str(caught.value).startswith(" and ".join(without))
    assert advice in str(caught.value)
    assert "--precision int8" in str(caught.value)


@pytest.mark.parametrize("text", ["tensorrt-rtx", "tensorrt-rtx:sm89,sm121", "tensorrt:sm90,sm100", "onnxruntime"])
def test_fp8_is_taken_where_it_can_be_computed(text: str) -> None:
    require_fp8(parse_target(text))


def test_fp8_weights_have_one_scale_where_more_would_cost_traffic() -> None:
    assert [parse_target(engine).fp8_per_channel for engine in ENGINES] == [False, False, True]
