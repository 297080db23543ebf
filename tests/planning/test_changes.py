"""Other decisions for single layers of a plan that stands."""

from __future__ import annotations

import numpy as np

from qcompiler.plan import Candidate
from qcompiler.planning.changes import changeable, in_high_precision, with_one_scale
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.target import DType
from tests.kit.planning.products import LAYERS, chosen, graph


def test_one_scale_keeps_the_precision_and_forgets_what_was_fitted_to_the_others() -> None:
    after = with_one_scale(chosen(), {"A", "Y"}, "because")
    assert after.plan.axes == dict.fromkeys(LAYERS)
    assert {one.precision for one in after.plan} == {DType.INT8}
    assert after.plan.decisions["A"].why == "because; why"
    assert after.plan.decisions["B"].why == "why"
    assert list(after.scales) == list(after.corrections) == ["B", "C"]
    assert list(after.plan.quantizers) == ["x", "b", "c"]


def test_high_precision_takes_pairs_along_that_nobody_reads_any_more() -> None:
    before = chosen()
    after = in_high_precision(before, graph(), {"A", "Y"}, DType.BF16, "slower", lambda old: f"now {old.why}")
    assert {one.node: str(one.precision) for one in after.plan} == {"A": "bf16", "B": "int8", "C": "int8", "Y": "bf16"}
    assert after.plan.decisions["Y"].rule == "slower"
    assert after.plan.decisions["Y"].why == "now why"
    assert list(after.plan.quantizers) == ["x", "b"]  # B still reads x
    assert after.plan.axes == {"B": None, "C": None}
    assert before.plan == chosen().plan


def test_what_came_quantized_is_not_ours_to_change() -> None:
    found = [Candidate(name, "MatMul", tensor, "w", axis) for name, (tensor, axis) in LAYERS.items()]
    found[0] = Candidate("A", "MatMul", "x", "w", 1, scales=np.ones(32, np.float32))
    found[1] = Candidate("B", "MatMul", "x", "w", None, amax=1.0)
    layers = Candidates((*found, Candidate("Z", "MatMul", "y", "w", 1)))
    assert changeable(chosen(), layers) == {"C", "Y"}
    assert changeable(chosen(DType.FP16), layers) == frozenset()
