"""The noise of a plan: its definition, and that nothing is run twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest

from qcompiler.compiler.content import digest
from qcompiler.ir.gs_classes import Graph
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Role, View, weighed
from qcompiler.planning.placement.candidates import by_activation, find_candidates
from qcompiler.planning.simulation import noise
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.noise import LEAST_SEEN, MOST_ELEMENTS, Measure, share_trials
from qcompiler.planning.simulation.simulator import Grids, Simulation, Simulator, Use
from qcompiler.support.each import Others
from qcompiler.target import DType, parse_target
from tests.kit.memory import crossing
from tests.kit.rewrite import model, to_graph

WHOLE, NARROW = Use(DType.INT8, 4.0), Use(DType.INT8, 1.0)


class Doubling:
    """Two outputs, of which a quantized group changes the first by a tenth and the second not at all."""

    views = (View("y", "y", "y", Role.OUTPUT), View("z", "z", "z", Role.OUTPUT))

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Use]] = []

    def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
        self.asked.append(uses)
        wrong = 1 + 0.1 * len(uses)
        return {"y": 2 * feed["x"] * wrong, "z": feed["x"]}


def feeds(*sizes: int) -> list[Feeds]:
    return [{"x": np.full(size, index + 1.0, np.float32)} for index, size in enumerate(sizes)]


def measured(samples: list[Feeds], few: int = 1, **options: Any) -> tuple[Measure, Doubling]:
    simulator = Doubling()
    return Measure(cast(Simulator, simulator), samples, few, options.pop("advance", None), **options), simulator


def test_noise_is_error_power_over_signal_power_at_the_worst_view() -> None:
    measure, _ = measured(feeds(4, 4, 4))
    assert measure.noise({}) == 0.0
    assert measure.noise({"x": WHOLE}) == pytest.approx(0.1**2, rel=1e-5)
    assert measure.noise({"x": WHOLE, "r": WHOLE}) == pytest.approx(0.2**2, rel=1e-5)


def test_noise_is_held_against_what_varies_from_sample_to_sample() -> None:
    samples = [{"x": np.array([10 + step, 10 - step], np.float32)} for step in (-1.0, 1.0, -1.0, 1.0)]
    whole, short = measured(samples)[0].noise({"x": WHOLE}), measured(samples)[0].noise({"x": WHOLE}, few=True)
    assert whole == pytest.approx(0.1**2 * 101 / (4 / 3), rel=1e-5)
    assert short == pytest.approx(whole, rel=1e-5)  # what varies is told by all of them


def test_a_view_of_zeros_does_not_count() -> None:
    measure, _ = measured([{"x": np.zeros(3, np.float32)}])
    assert measure.noise({"x": WHOLE}) == 0.0


def test_what_is_known_is_not_run_again() -> None:
    seen: list[int] = []
    measure, simulator = measured(feeds(1, 1, 1), advance=seen.append)
    first = measure.noise({"x": WHOLE, "r": NARROW})
    runs = len(simulator.asked)
    assert measure.noise({"r": NARROW, "x": WHOLE}) == first  # whatever the order
    assert len(simulator.asked) == runs
    measure.noise({"x": NARROW, "r": NARROW})
    assert len(simulator.asked) == runs + 3
    assert sum(seen) == 6
    assert measure.runs == 3 + 6


def test_few_samples_are_the_first_ones() -> None:
    measure, simulator = measured(feeds(4, 4, 4), few=2)
    runs = len(simulator.asked)
    measure.noise({"x": WHOLE}, few=True)
    assert len(simulator.asked) == runs + 2 == runs + measure.few


def test_few_samples_that_are_all_of_them_are_not_run_twice() -> None:
    measure, simulator = measured(feeds(4, 4), few=4)
    measure.noise({"x": WHOLE}, few=True)
    runs = len(simulator.asked)
    measure.noise({"x": WHOLE})
    assert len(simulator.asked) == runs


def test_the_diagonal_of_the_products_is_the_noise_of_each_plan() -> None:
    measure, _ = measured(feeds(4, 4, 4))
    plans = [{"x": WHOLE}, {"x": WHOLE, "r": WHOLE}, {}]
    products = measure.products(plans, 3)
    assert products is not None
    assert products.shape == (2, 3, 3)
    for at, plan in enumerate(plans):
        np.testing.assert_allclose(products[:, at, at], measure.noises(plan), rtol=1e-4)
    assert products[0, 0, 1] == pytest.approx(0.1 * 0.2, rel=1e-4)
    assert products[0, 0, 2] == 0


def test_of_large_views_the_products_look_at_a_part() -> None:
    rng = np.random.default_rng(3)
    large: list[Feeds] = [{"x": rng.standard_normal(3 * MOST_ELEMENTS).astype(np.float32)}]
    measure, _ = measured(large)
    products = measure.products([{"x": WHOLE}], 1)
    assert products is not None
    assert products[0, 0, 0] == pytest.approx(measure.noise({"x": WHOLE}), rel=0.03)


class Breaking(Doubling):
    """What is quantized is not finite."""

    def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
        found = super().run(feed, uses)
        return {**found, "y": found["y"] * np.float32(np.inf)} if uses else found


def test_errors_that_are_not_finite_have_no_products() -> None:
    measure = Measure(cast(Simulator, Breaking()), feeds(4), 1, None)
    assert measure.products([{"x": WHOLE}, {}], 1) is None
    assert measure.noise({"x": WHOLE}) == np.inf


def test_what_was_run_alone_is_told_with_its_range() -> None:
    measure, _ = measured(feeds(1, 1))
    measure.noise({"x": WHOLE, "r": NARROW}, few=True)
    assert measure.alone == {}
    alone = [measure.noise({"x": use}, few=True) for use in (WHOLE, NARROW, WHOLE)]
    assert measure.alone == {"x": {DType.INT8: [(4.0, alone[0]), (1.0, alone[1])]}}


def test_of_a_range_that_was_run_on_few_samples_and_on_all_those_on_all_count() -> None:
    measure, _ = measured(feeds(1, 1))
    whole = measure.noise({"x": WHOLE})
    few = measure.noise({"x": NARROW}, few=True)
    measure.noise({"x": WHOLE}, few=True)
    assert dict(measure.alone["x"][DType.INT8]) == {4.0: whole, 1.0: few}


def test_what_another_one_has_run_on_the_same_simulator_is_not_run_again_and_counts() -> None:
    samples = feeds(1, 2, 3)
    first, simulator = measured(samples)
    known = first.noise({"x": WHOLE})
    assert first.runs == 6
    asked = len(simulator.asked)
    second = Measure(cast(Simulator, simulator), samples, 1, None)
    assert second.noise({"x": WHOLE}) == known
    assert second.runs == 6
    assert second.noise({"x": WHOLE}, few=True) == pytest.approx(known)  # a part of the samples is not run either
    assert second.runs == 6  # nor does it count again
    assert len(simulator.asked) == asked
    second.noise({"x": NARROW}, few=True)  # another range is another question
    assert len(simulator.asked) == asked + 1
    other, fresh = measured(samples)
    assert other.noise({"x": WHOLE}) == known
    assert len(fresh.asked) == 6  # and so is another simulator


class Kept:
    """Keeps by the content of the question, as a compilation does; remembers what had to be made."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.made = 0

    def __call__(self, name: str, inputs: Sequence[object], make: Callable[[], Any]) -> Any:
        key = digest((name, tuple(inputs)))
        if key not in self.known:
            self.known[key], self.made = make(), self.made + 1
        return self.known[key]


def kept(keep: Kept, samples: list[Feeds], scale: float = 1.0) -> tuple[Measure, Doubling]:
    simulator = Doubling()
    scales = {"n": np.full(1, scale, np.float32)}
    shifts = cast(Shifts, None)
    whole = Simulation(
        Model(Graph(), {}, None, 8), {}, {}, samples, Grids(), scales, shifts, cast(Simulator, simulator)
    )
    share_trials(whole, Others(keep))
    return Measure(whole.simulator, samples, 1, None), simulator


def test_what_an_earlier_search_has_run_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "WORTH_KEEPING", 0.0)
    keep, plan = Kept(), {"x": WHOLE}
    first, _ = kept(keep, feeds(4, 4))
    found = first.noises(plan)
    assert keep.made == 2  # a sample each
    again, simulator = kept(keep, feeds(4, 4))
    assert np.array_equal(again.noises(plan), found)
    assert (keep.made, again.runs) == (2, first.runs)
    assert simulator.asked == [{}, {}]
    for other in (kept(keep, feeds(4, 5))[0], kept(keep, feeds(4, 4), scale=2.0)[0]):
        other.noises(plan)
    assert (
        keep.made == 2 + 1 + 2 + 1
    )  # the other sample and, of both, what biases are corrected by, are another question
    again.noises({"x": NARROW})
    assert keep.made == 8


def test_runs_that_are_over_at_once_are_not_looked_up() -> None:
    keep = Kept()
    kept(keep, feeds(4, 4))[0].noises({"x": WHOLE})
    assert keep.made == 0


@pytest.fixture
def searched() -> Callable[[], Simulation]:
    """Makes the simulation of a net whose first layer is a convolution, of which means are corrected."""
    model = Model(to_graph(convolutions()), {}, None, 8)
    groups = by_activation(find_candidates(model.graph, parse_target("tensorrt-rtx"))[0])
    offers = {name: (Use(DType.INT8, 2.0), Use(DType.INT8, 3.0)) for name in groups}
    rng = np.random.default_rng(2)
    samples = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    return lambda: Simulation.of(model, groups, offers, samples, Grids(), {})


def convolutions() -> Any:
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)), "v": rng.standard_normal((8, 8, 3, 3))}
    weights = {name: one.astype(np.float32) for name, one in weights.items()}
    nodes = (("Conv", "x w", "a"), ("Relu", "a", "b"), ("Conv", "b v", "c"), ("Relu", "c", "y"))
    return model(*nodes, inputs={"x": (1, 3, 8, 8)}, weights=weights, opset=21)


def test_plans_that_others_run_give_the_same(
    searched: Callable[[], Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "WORTH_SHARING", 0.0)
    alone, shared = searched(), searched()
    plans = [{name: use} for name, uses in shared.offers.items() for use in uses]
    assert len(plans) > 2
    share_trials(shared, Others(Kept(), crossing))
    plain, helped = (Measure(one.simulator, one.feeds, 2, None) for one in (alone, shared))
    ran, run = list[Mapping[str, Use]](), Simulator.run

    def watched(self: Simulator, feed: Feeds, uses: Mapping[str, Use]) -> Any:
        ran.extend([uses] if self is shared.simulator else [])
        return run(self, feed, uses)

    monkeypatch.setattr(Simulator, "run", watched)
    helped.ahead(plans, few=True)
    for plan in plans:
        assert np.array_equal(helped.noises(plan, few=True), plain.noises(plan, few=True))
    assert ran == []
    assert helped.runs == plain.runs


def test_plans_that_are_run_at_once_are_run_here(searched: Callable[[], Simulation]) -> None:
    one = searched()

    def nobody(name: str, begin: Any, shared: tuple[Any, ...], items: Any) -> Any:
        raise AssertionError(f"{name} is asked")

    share_trials(one, Others(Kept(), nobody))
    measure = Measure(one.simulator, one.feeds, 2, None)
    measure.ahead([{name: use} for name, uses in one.offers.items() for use in uses])


class Rounding(Doubling):
    """What is quantized errs by its range, the more the louder a sample is."""

    def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
        found = super().run(feed, uses)
        step = sum(use.amax for use in uses.values())
        return {**found, "y": found["y"] + np.float32(step) * np.abs(feed["x"]) / 100}


def ranged(*amax: float) -> list[dict[str, Use]]:
    return [{"x": Use(DType.INT8, one)} for one in amax]


def test_a_plan_that_surely_loses_is_not_run_on_all_samples() -> None:
    samples = [{"x": np.full(4, value, np.float32)} for value in (1, 2, 3, 1, 2, 3)]
    simulator = Rounding()
    measure = Measure(cast(Simulator, simulator), samples, 1, None)
    assert measure.quietest(ranged(4.0, 1.0, 2.0, 1.0)) == 1  # of equals the first
    assert measure.runs == 6 + 2 * LEAST_SEEN + 6
    assert measure.noise(ranged(1.0)[0]) < measure.noise(ranged(2.0)[0], few=True)
    assert measure.runs == 6 + 2 * LEAST_SEEN + 6  # what was run is known


def test_plans_that_are_too_close_to_tell_are_run_on_all_samples_and_the_better_one_is_taken() -> None:
    class Swapping(Rounding):
        """Which of two ranges is better depends on the sample."""

        def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
            flipped = {name: Use(use.dtype, 3.0 - use.amax) for name, use in uses.items()}
            return super().run(feed, flipped if float(feed["x"][0]) == 1 else uses)

    samples = [{"x": np.array([value, i], np.float32)} for i, value in enumerate((1, 2, 1, 2, 1, 2, 2))]
    measure = Measure(cast(Simulator, Swapping()), samples, 1, None)
    plans = ranged(2.0, 1.0)
    assert measure.quietest(plans) == min(range(2), key=lambda at: measure.noise(plans[at]))
    assert measure.runs == 3 * 7


class Drawing:
    """Logits of a vocabulary, which each quantized group moves in a way of its own, most of all where nobody draws."""

    views = weighed((View("y", "y", "y", Role.OUTPUT, drawn=True),))

    def run(self, feed: Feeds, uses: Mapping[str, Use]) -> Feeds:
        logits = feed["x"]
        for name in uses:
            noise = np.random.default_rng(ord(name)).standard_normal(logits.shape)
            logits = logits + (noise * np.where(logits < -20, 5, 0.01)).astype(np.float32)
        return {"y": logits}


def test_products_of_large_views_look_at_the_tokens_that_are_drawn() -> None:
    random = np.random.default_rng(0)
    logits = np.where(random.random((64, 4096)) < 0.005, random.standard_normal((64, 4096)), -30).astype(np.float32)
    assert logits.size > MOST_ELEMENTS
    measure = Measure(cast(Simulator, Drawing()), [{"x": logits}], 1, None)
    plans = [{"a": WHOLE}, {"b": WHOLE}, {"a": WHOLE, "b": WHOLE}]
    (found,) = cast(np.ndarray, measure.products(plans, 1))
    assert found[0, 0] == pytest.approx(measure.noise(plans[0]), rel=0.01)
    assert found[0, 2] == pytest.approx(found[0, 0], rel=0.2)  # what both have in common
    assert abs(found[0, 1]) < 0.2 * found[0, 0]
