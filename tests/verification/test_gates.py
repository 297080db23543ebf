"""The user's limits: where they hold, what a miss says, and what cannot be asked."""

from __future__ import annotations

import dataclasses
import math

import pytest

from qcompiler.errors import AccuracyError, UsageError
from qcompiler.judge.figures import ViewFigure
from qcompiler.judge.outputs import Output
from qcompiler.verification.compare import Verification
from qcompiler.verification.drift import TappedLayer
from qcompiler.verification.gates import Gates
from qcompiler.verification.metric import Score


def measured(sqnr: float | None, score: Score | None = None) -> Verification:
    cosine = None if sqnr is None else 0.9
    output = Output("y", "float32", 10, sqnr, cosine, 0.1, None, None if cosine else 1.0, 0, 0, 0)
    view = ViewFigure("y", "y", "y", "output" if sqnr is not None else "result", "", sqnr is not None, 1, sqnr)
    return Verification(1, (output,), score=score, views=(view,))


def test_gates_pass_at_their_threshold_and_fail_below_with_both_figures() -> None:
    Gates(min_sqnr=20).require(measured(20.0))
    with pytest.raises(AccuracyError, match=r"'y' reaches 19\.99 dB of SQNR and at least 20 dB"):
        Gates(min_sqnr=20).require(measured(19.99))
    gates = Gates(max_drop=0.02)
    gates.require(measured(1.0, Score("top-1", 0.5, 0.49, True)))
    gates.require(measured(1.0, Score("top-1", 0.5, 0.6, True)))
    with pytest.raises(AccuracyError, match=r"'top-1' goes from 0\.5 \(float\) to 0\.48 .* 4\.00% .* 2\.00%"):
        gates.require(measured(1.0, Score("top-1", 0.5, 0.48, True)))
    with pytest.raises(AccuracyError, match="'perplexity' goes from 20"):
        gates.require(measured(1.0, Score("perplexity", 20, 21, False)))
    with pytest.raises(AccuracyError, match="to nan"):
        gates.require(measured(1.0, Score("top-1", 0.5, math.nan, True)))


def test_a_gate_on_something_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="no float output"):
        Gates(min_sqnr=20).require(measured(None))
    with pytest.raises(UsageError, match="no metric was measured"):
        Gates(max_drop=0.1).hold(measured(30.0))


def test_gates_hold_where_nothing_is_missed() -> None:
    gates = Gates(min_sqnr=20)
    assert gates.hold(None)
    assert gates.hold(measured(20.0))
    assert not gates.hold(measured(19.99))


def test_a_model_that_is_broken_passes_no_gate_and_none_is_needed_for_that() -> None:
    output = Output("y", "float32", 10, 40.0, 0.9, 0.1, None, None, 3, 0, 0)
    broken = Verification(1, (output,))
    with pytest.raises(AccuracyError, match=r"broken: output 'y' has 3 of 10 values that are NaN or infinite"):
        Gates().require(broken)
    assert not Gates().hold(broken)


def test_a_miss_names_the_node_where_it_begins() -> None:
    layer = TappedLayer("h2", "mm2", "MatMul", 3.0, 40.0, True)
    found = dataclasses.replace(measured(5.0), layers=(layer,))
    with pytest.raises(AccuracyError, match=r"It begins at node 'mm2' \(MatMul\)"):
        Gates(min_sqnr=20).require(found)


def test_an_output_of_another_shape_fails_a_gate_unless_it_is_ignored() -> None:
    boxes = ViewFigure("boxes", "boxes", "boxes", "result", "TopK", False, 8, None, 0, None, 0.97, reshaped=3)
    good = measured(30.0)
    picked = dataclasses.replace(good, views=(*good.views, boxes))
    with pytest.raises(AccuracyError, match=r"'boxes' has another shape .* in 3 of 1 samples.*--ignore-output boxes"):
        Gates(min_sqnr=20).require(picked)
    Gates().require(picked)
    ignored = dataclasses.replace(boxes, role="ignored")
    Gates(min_sqnr=20).require(dataclasses.replace(good, views=(*good.views, ignored)))


def test_the_worst_view_is_named_with_the_output_that_it_belongs_to() -> None:
    source = ViewFigure("h (before ArgMax)", "classes", "h", "source", "ArgMax", True, 8, 12.0, 0, 11.0)
    found = dataclasses.replace(measured(30.0), views=(*measured(30.0).views, source))
    with pytest.raises(AccuracyError, match=r"'h \(before ArgMax\)' of output 'classes' reaches 12\.00 dB"):
        Gates(min_sqnr=20).require(found)
