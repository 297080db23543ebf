"""Few joint runs tell what each group does alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.judge.views import Role, View
from qcompiler.planning.search.group_tests import designed, each_alone, runs_to_solve, solve
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.target import DType

Feeds = dict[str, Any]
ONE = Use(DType.INT8, 1.0)


class Additive:
    """A model whose groups each add their own noise to a large output; the errors of two groups are independent."""

    views = (View("y", "y", "y", Role.OUTPUT),)

    def __init__(self, powers: Mapping[str, float], elements: int = 20_000, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self._reference = rng.standard_normal(elements).astype(np.float32)
        self._noise = {
            name: (rng.standard_normal(elements) * power**0.5).astype(np.float32) for name, power in powers.items()
        }
        self.runs = 0

    def run(self, feeds: Feeds, uses: Mapping[str, Use]) -> Feeds:
        self.runs += 1
        return {"y": np.sum([self._reference, *(self._noise[name] for name in uses)], axis=0)}


def powers(groups: int, seed: int = 1) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {f"g{i}": float(value) for i, value in enumerate(1e-3 * np.exp(rng.normal(0, 1.5, groups)))}


def ranks(values: list[float]) -> Any:
    return np.argsort(np.argsort(values))


@pytest.mark.parametrize("groups", [24, 60, 200])
def test_joint_runs_find_what_each_group_does(groups: int) -> None:
    known = powers(groups)
    model = Additive(known)
    measure = Measure(cast(Simulator, model), [{}], 1, None)
    found = each_alone(measure, dict.fromkeys(known, ONE), budget=runs_to_solve(groups))
    assert found.joint
    assert found.tests == runs_to_solve(groups)
    assert model.runs == 1 + runs_to_solve(groups)
    got = [float(found.noise[name][0]) for name in known]
    assert np.corrcoef(ranks(got), ranks(list(known.values())))[0, 1] > 0.95
    loud = [name for name in known if known[name] > 0.02 * sum(known.values())]
    assert loud
    for name in loud:
        assert float(found.noise[name][0]) == pytest.approx(known[name], rel=0.25)


def test_few_groups_and_large_budgets_are_run_one_by_one() -> None:
    for known, budget in ((powers(6), 1), (powers(40), 40)):
        measure = Measure(cast(Simulator, Additive(known)), [{}], 1, None)
        found = each_alone(measure, dict.fromkeys(known, ONE), budget)
        assert not found.joint
        for name, power in known.items():
            assert float(found.noise[name][0]) == pytest.approx(power, rel=0.05)


def test_a_group_that_is_not_finite_does_not_hide_the_others() -> None:
    known = {**powers(40), "broken": np.inf}
    measure = Measure(cast(Simulator, Additive({**known, "broken": 1.0})), [{}], 1, None)
    model = measure._simulator
    run = model.run

    def breaking(feeds: Any, uses: Any) -> Any:
        found = run(feeds, uses)
        return {"y": found["y"] * np.float32(np.nan)} if "broken" in uses else found

    model.run = breaking  # type: ignore[method-assign]
    found = each_alone(measure, dict.fromkeys(known, ONE), budget=20)
    assert not found.joint
    assert np.isinf(found.noise["broken"]).all()
    assert all(np.isfinite(found.noise[name]).all() for name in known if name != "broken")


def test_a_budget_below_the_least_still_solves() -> None:
    known = powers(60)
    measure = Measure(cast(Simulator, Additive(known)), [{}], 1, None)
    found = each_alone(measure, dict.fromkeys(known, ONE), budget=1)
    assert found.joint
    loudest = max(known, key=lambda name: known[name])
    assert max(found.noise, key=lambda name: float(found.noise[name][0])) == loudest


@settings(max_examples=20, deadline=None)
@given(st.integers(9, 40), st.integers(0, 1000))
def test_without_cross_terms_the_solution_is_exact(groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    design = designed(groups, groups + 2)
    noise = np.exp(rng.normal(0, 1, groups))
    products = (design * noise) @ design.T.astype(float)
    np.testing.assert_allclose(solve(design, products), noise, rtol=0.02, atol=2e-3 * noise.mean())


def test_the_design_is_the_same_each_time_and_halves() -> None:
    design = designed(50, 20)
    np.testing.assert_array_equal(design, designed(50, 20))
    assert design[0].all()
    assert (design[1:].sum(axis=0) == 9).all()
    assert len({column.tobytes() for column in design.T}) == 50
