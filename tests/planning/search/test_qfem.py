"""The walk over thresholds: what is spared, where it stops, and what it says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.planning.search import qfem

RATIOS = {"plain": 2.0, "mild": 8.0, "spike": 900.0, "worse": 2000.0}
MACS = dict.fromkeys(RATIOS, 10)


def _gains(table: dict[str, float]) -> qfem.Figure:
    def measure(spared: Sequence[str]) -> float:
        return 10.0 + sum(table[name] for name in spared)

    return measure


def test_layers_that_spike_are_spared_as_long_as_it_pays() -> None:
    found = qfem.find_threshold(
        RATIOS, MACS, 1000, _gains({"worse": 8, "spike": 6, "mild": 0.1}), budget=1, target_db=99
    )
    assert found.tensors == ("worse", "spike")
    assert [point.layers for point in found.curve] == [0, 1, 2, 3]
    assert found.alpha is not None
    assert 8 < found.alpha < 900
    assert "too little" in found.why
    assert "2000 times its median" in found.reason("worse")


def test_the_target_ends_the_walk() -> None:
    found = qfem.find_threshold(RATIOS, MACS, 1000, _gains({"worse": 8, "spike": 6, "mild": 5}), budget=1, target_db=17)
    assert found.tensors == ("worse",)
    assert found.why == "the target is reached"


def test_the_budget_ends_the_walk() -> None:
    found = qfem.find_threshold(
        RATIOS, MACS, 1000, _gains({"worse": 8, "spike": 6, "mild": 5}), budget=0.021, target_db=99
    )
    assert found.tensors == ("worse", "spike")
    assert found.why == "the budget ends here"
    assert max(point.share for point in found.curve) <= 0.021


def test_nothing_is_spared_where_no_token_spikes() -> None:
    found = qfem.find_threshold({"plain": 2.0}, MACS, 1000, _gains({"plain": 50}), budget=1, target_db=99)
    assert (found.tensors, found.alpha) == ((), None)
    assert found.why == "no layer's tokens spike"


def test_nothing_is_spared_where_it_gains_too_little() -> None:
    found = qfem.find_threshold(RATIOS, MACS, 100, _gains(dict.fromkeys(RATIOS, 0.2)), budget=1, target_db=99)
    assert found.tensors == ()
    assert "gains less than" in found.why


def test_a_later_layer_can_pay_for_one_that_gains_nothing() -> None:
    found = qfem.find_threshold(RATIOS, MACS, 1000, _gains({"worse": 0, "spike": 9, "mild": 0}), budget=1, target_db=99)
    assert found.tensors == ("worse", "spike")


def test_a_given_alpha_spares_every_layer_above_it_without_measuring() -> None:
    found = qfem.fixed(RATIOS, MACS, 40, 8.0)
    assert found.tensors == ("worse", "spike")
    assert found.curve[0].share == pytest.approx(0.5)
    assert found.curve[0].sqnr_db is None


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.floats(1, 1e4), min_size=1, max_size=60),
    st.floats(0, 1),
)
def test_the_budget_is_kept_and_every_spared_layer_is_above_alpha(ratios: dict[str, float], budget: float) -> None:
    macs = dict.fromkeys(ratios, 3)
    total = 3 * len(ratios)
    found = qfem.find_threshold(
        ratios, macs, total, lambda spared: float(10 * len(spared)), budget=budget, target_db=1e9
    )
    assert 3 * len(found.tensors) <= budget * total + 1e-6
    assert len(found.curve) <= qfem.MOST_STEPS + 1
    if found.alpha is not None:
        assert all(ratios[name] >= found.alpha * (1 - 1e-12) for name in found.tensors)
        assert all(ratios[name] <= found.alpha * (1 + 1e-12) for name in ratios if name not in found.tensors)


def test_nothing_is_spared_where_the_outputs_are_good_enough() -> None:
    found = qfem.find_threshold(RATIOS, MACS, 1000, _gains(dict.fromkeys(RATIOS, 9)), budget=1, target_db=10)
    assert (found.tensors, len(found.curve)) == ((), 1)
    assert found.why == "the outputs meet the target without it"


def _scored(table: dict[str, float], *, higher: bool = False) -> qfem.Scoring:
    def score(spared: Sequence[str]) -> float:
        lost = 0.5 - sum(table[name] for name in spared)
        return 10.0 * (1 - lost if higher else 1 + lost)

    return qfem.Scoring("perplexity", 10.0, higher, score)


@pytest.mark.parametrize("higher", [True, False])
def test_a_metric_decides_over_the_noise(higher: bool) -> None:
    noise = _gains({"worse": 8, "spike": 6, "mild": 6})
    scoring = _scored({"worse": 0.4, "spike": 0.0, "mild": 0.0}, higher=higher)
    found = qfem.find_threshold(RATIOS, MACS, 1000, noise, budget=1, target_db=99, metric=lambda: scoring)
    assert found.tensors == ("worse",)
    assert found.metric == "perplexity"
    assert found.why == "more layers gain too little, by perplexity"
    assert [point.loss for point in found.curve] == pytest.approx([0.5, 0.1, 0.1, 0.1])
    without = qfem.find_threshold(RATIOS, MACS, 1000, noise, budget=1, target_db=99)
    assert without.tensors == ("worse", "spike", "mild")


def test_a_metric_that_loses_nothing_leaves_it_to_the_noise() -> None:
    scoring = qfem.Scoring("accuracy", 0.9, True, lambda spared: 0.9)
    found = qfem.find_threshold(
        RATIOS,
        MACS,
        1000,
        _gains({"worse": 8, "spike": 6, "mild": 0.1}),
        budget=1,
        target_db=99,
        metric=lambda: scoring,
    )
    assert found.tensors == ("worse", "spike")
    assert found.why == "more layers gain too little"


def test_a_metric_that_is_no_number_is_a_total_loss() -> None:
    assert _scored({}).loss(float("nan")) == float("inf")
    table = {"worse": 0.4, "spike": 0.0, "mild": 0.0}
    broken = qfem.Scoring("score", 10.0, True, lambda spared: 10.0 if "worse" in spared else float("nan"))
    found = qfem.find_threshold(RATIOS, MACS, 1000, _gains(table), budget=1, target_db=99, metric=lambda: broken)
    assert found.tensors == ("worse",)


@pytest.mark.parametrize(("ratios", "target_db"), [({"plain": 2.0}, 99), (RATIOS, 10)])
def test_a_metric_is_not_run_where_nothing_is_walked(ratios: dict[str, float], target_db: float) -> None:
    def never() -> qfem.Scoring:
        raise AssertionError

    found = qfem.find_threshold(ratios, MACS, 1000, lambda spared: 10.0, budget=1, target_db=target_db, metric=never)
    assert found.curve[0].score is None
