"""What was asked for of the share: nothing, too little, as promised; by the plan and by the engine's listing."""

from __future__ import annotations

import pytest

from qcompiler.errors import AccuracyError
from qcompiler.plan import Decision, Plan
from qcompiler.target import DType
from qcompiler.verification.share import Promise, left_float, nothing_quantized, require

INT8 = Promise("int8", asks=True, something=True)


def plan(*nodes: tuple[str, str, DType, str, int]) -> Plan:
    return Plan.of(Decision(name, op, dtype, rule, f"of {name}", macs) for name, op, dtype, rule, macs in nodes)


def test_a_layer_that_is_quantized_is_something_and_an_addition_is_nothing() -> None:
    added = ("a", "Add", DType.INT8, "residual", 0)
    assert nothing_quantized(plan(added, ("c", "Conv", DType.INT8, "linear", 9)), INT8) is None
    assert nothing_quantized(plan(added, ("c", "Conv", DType.FP16, "kept", 9)), INT8) is not None
    assert nothing_quantized(plan(("m", "MatMul", DType.INT4_WEIGHT, "weight-only", 0)), INT8) is None


def test_the_rule_that_takes_the_most_work_is_named_first_with_its_largest_layer() -> None:
    told = nothing_quantized(
        plan(
            ("a", "Gemm", DType.FP16, "gemv", 1),
            ("b", "Gemm", DType.FP16, "gemv", 2),
            ("c", "Conv", DType.FP16, "kept", 90),
            ("d", "MatMul", DType.FP16, "subgraph", 3),
            ("e", "MatMul", DType.FP16, "tiny", 1),
            ("r", "Relu", DType.FP16, "other", 0),
        ),
        INT8,
    )
    assert told == (
        "nothing of what was asked for was quantized (int8): rule 'kept' leaves 1 of 5 layers in float ('c', Conv: of "
        "c), 'gemv' 2, 'subgraph' 1, and 1 more rules the rest"
    )


def test_a_model_without_layers_and_one_that_nobody_wanted_quantized() -> None:
    relu = plan(("r", "Relu", DType.FP16, "other", 0))
    told = nothing_quantized(relu, INT8)
    assert told is not None
    assert told.endswith("the model has no convolution, matrix product or recurrent layer")
    assert nothing_quantized(relu, Promise("fp16", asks=False, something=False)) is None


def test_the_gate_counts_multiply_accumulates_at_its_threshold() -> None:
    found = plan(("a", "Conv", DType.INT8, "linear", 75), ("b", "Conv", DType.FP16, "sensitive", 25))
    require(found, INT8)
    require(found, Promise("int8", asks=True, something=True, min_share=0.75))
    with pytest.raises(
        AccuracyError, match=r"75\.0% .* are quantized and at least 76\.0% .* rule 'sensitive' leaves 1"
    ):
        require(found, Promise("int8", asks=True, something=True, min_share=0.76))
    with pytest.raises(AccuracyError, match=r"^0\.0% of"):
        require(Plan(), Promise("int8", asks=True, something=True, min_share=0.1))


def test_what_the_engine_does_not_confirm_does_not_count() -> None:
    found = plan(("a", "Conv", DType.INT8, "linear", 60), ("b", "Conv", DType.INT8, "linear", 40))
    promise = Promise("int8", asks=True, something=True, min_share=0.9)
    require(found, promise, ("a", "b"))
    with pytest.raises(AccuracyError, match=r"60\.0% .* quantized and confirmed by the engine's own listing"):
        require(found, promise, ("a",))


@pytest.mark.parametrize(
    ("rule", "macs", "told"),
    [
        ("subgraph", 60, True),
        ("subgraph", 5, False),
        ("sensitive", 60, False),
        ("kept", 60, False),
        ("zero", 60, False),
    ],
)
def test_work_that_stays_float_by_what_it_is_is_told_where_it_is_much(rule: str, macs: int, told: bool) -> None:
    plan = Plan.of(
        [
            Decision("A", "MatMul", DType.INT8, "linear", "constant weight", 100 - macs),
            Decision("B", "MatMul", DType.FP16, rule, "inside the body of 'L' (Loop)", macs),
        ]
    )
    found = left_float(plan, Promise("int8", asks=True, something=True, usual=0.9))
    assert (found is not None) == told
    if found is not None:
        assert "60% of the work" in found
        assert "rule 'subgraph' leaves 1 of 2 layers in float ('B', MatMul: inside" in found
    assert left_float(plan, Promise("auto", asks=True, something=False, usual=0.9)) is None
