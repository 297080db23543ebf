"""The safety net: the layer that does the damage goes, the others stay, and limits are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.ir.macs import node_macs, tensors_for_shapes
from qcompiler.judge.views import Role, View
from qcompiler.numerics.sqnr import decibel
from qcompiler.planning.placement import candidates
from qcompiler.planning.search.safety_net import Limits, Prices, SafetyNet, find_net
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model

LAYERS = 6
Feeds = dict[str, Any]


def chain(folder: Path) -> models.Model:
    """Six MatMuls with Relus between them; 32 rows, 64 wide, each keeping the size of what it gets."""
    rng = np.random.default_rng(8)
    nodes: list[tuple[Any, ...]] = []
    values = {}
    before = "x"
    for k in range(LAYERS):
        after = "y" if k == LAYERS - 1 else f"a{k}"
        nodes.append(("MatMul", f"{before} w{k}", after))
        values[f"w{k}"] = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
        before = after
    onnx.save(model(*nodes, inputs={"x": (32, 64)}, weights=values), folder / "m.onnx")
    return models.load(folder / "m.onnx")


@pytest.fixture
def net(tmp_path: Path) -> Any:
    """Runs a search with clipping ranges by layer number; the others are right."""
    loaded = chain(tmp_path)
    rng = np.random.default_rng(9)
    feeds = [{"x": rng.standard_normal((32, 64)).astype(np.float32)} for _ in range(3)]
    found, _ = candidates.find_candidates(loaded.graph, parse_target("tensorrt-rtx"))
    groups = candidates.by_activation(found)
    shapes = concrete_shapes(loaded.graph, feeds[0], tensors_for_shapes(loaded.graph))
    macs = {name: node_macs(loaded.graph, shapes)[one[0].node] for name, one in groups.items()}

    def run(limits: Limits, wrong: dict[str, list[float]], total: int | None = None, advance: Any = None) -> SafetyNet:
        ranges = {name: wrong.get(name, [5.0]) for name in groups}
        simulator = Simulator(loaded, groups, Shifts(loaded, groups, ranges, feeds))
        offers = {name: [Use(DType.INT8, value) for value in values] for name, values in ranges.items()}
        return find_net(simulator, feeds, offers, Prices(macs, total or sum(macs.values())), limits, advance)

    return run


def test_a_model_that_is_good_enough_is_left_quantized(net: Any) -> None:
    found = net(Limits(25, 0.5, 8), {})
    assert (found.restored, found.noise, found.met, len(found.curve)) == ((), {}, True, 1)
    assert found.curve[0].share == 1
    assert found.curve[0].sqnr_db > 25
    assert found.runs == 6  # three in float, three quantized


def test_the_layer_that_does_the_damage_goes_back(net: Any) -> None:
    found = net(Limits(25, 0.5, 8), {"a2": [0.05]})
    assert found.restored == ("a2",)
    assert found.met
    assert found.noise["a2"] == max(found.noise.values())
    assert found.curve[0].sqnr_db < 8
    assert found.curve[-1].sqnr_db >= 25
    assert found.curve[-1].share == pytest.approx(5 / 6)


def test_other_ranges_are_tried_before_a_layer_is_given_up(net: Any) -> None:
    crossed = {"a1": [5.0, 0.05], "a2": [0.05, 5.0]}  # no calibrator is right for both
    found = net(Limits(25, 0.5, 8), crossed)
    assert found.restored == ()
    assert (found.amax["a1"], found.amax["a2"]) == (5.0, 5.0)
    tried = [dict(found.tried[name][DType.INT8]) for name in ("a1", "a2")]  # what each range gave is told
    (both,) = [one for one in tried if set(one) == {5.0, 0.05}]
    assert both[5.0] < both[0.05]
    assert found.met
    assert found.curve[-1].share == 1
    without = net(Limits(25, 0.5, 8, runs=0), crossed)
    assert 0.05 in (without.amax["a1"], without.amax["a2"])
    assert without.restored


def test_the_search_starts_from_the_best_single_calibrator(net: Any) -> None:
    found = net(Limits(25, 0.5, 8, runs=0), {"a2": [0.05, 5.0]})
    assert found.amax["a2"] == 5.0
    assert found.restored == ()


def test_the_share_that_must_stay_is_kept_even_where_the_target_is_missed(net: Any) -> None:
    wrong = {name: [1.0] for name in ("x", "a0", "a1", "a2")}
    found = net(Limits(40, 0.6, -100), wrong)
    assert not found.met
    assert all(step.share >= 0.6 for step in found.curve)
    assert found.curve[-1].sqnr_db == max(step.sqnr_db for step in found.curve)


def test_the_share_gives_way_where_the_outputs_are_useless(net: Any) -> None:
    wrong = {name: [0.05] for name in ("x", "a0", "a1")}
    found = net(Limits(25, 0.9, 8), wrong)
    assert set(wrong) <= set(found.restored)
    assert found.curve[-1].sqnr_db >= 8
    assert found.curve[-1].share < 0.9


def test_layers_outside_the_groups_count_in_the_share(net: Any) -> None:
    found = net(Limits(25, 0.5, 8), {}, total=2 * 6 * 32 * 64 * 64)
    assert found.curve[0].share == pytest.approx(0.5)


def test_progress_counts_runs_behind_the_reference(net: Any) -> None:
    steps: list[int] = []
    found = net(Limits(25, 0.5, 8), {"a2": [0.05]}, advance=steps.append)
    assert sum(steps) == found.runs - 3


def test_the_same_search_twice_is_the_same(net: Any) -> None:
    limits, wrong = Limits(30, 0.3, 8), {"a1": [0.1, 1.0], "a3": [0.5]}
    assert net(limits, wrong) == net(limits, wrong)


class Table:
    """A simulator whose outputs are the reference and, of each quantized group, its own noise of a given SQNR."""

    views: tuple[View, ...] = (View("y", "y", "y", Role.OUTPUT),)

    def __init__(self, table: dict[str, dict[DType, float]]) -> None:
        self._noise = {
            (group, dtype): np.eye(len(table), dtype=np.float32)[i] * 10 ** (-db / 20)
            for i, (group, row) in enumerate(table.items())
            for dtype, db in row.items()
        }
        self._reference = np.full(len(table), len(table) ** -0.5, np.float32)

    def run(self, feeds: Feeds, uses: dict[str, Use]) -> Feeds:
        noise = [self._noise[group, use.dtype] for group, use in uses.items()]
        return {"y": np.sum([self._reference, *noise], axis=0)}


def searched(
    table: dict[str, dict[DType, float]], seconds: dict[str, dict[str, float]], limits: Limits, *, macs: int = 1000
) -> SafetyNet:
    offers = {group: [Use(dtype, 1.0) for dtype in row] for group, row in table.items()}
    prices = Prices(dict.fromkeys(table, macs), macs * len(table), seconds)
    return find_net(cast(Simulator, Table(table)), [{}], offers, prices, limits)


INT8, FP8 = DType.INT8, DType.FP8
CHEAP_INT8 = {"int8": 1.0, "fp8": 2.0, "high": 4.0}


def test_each_group_takes_the_cheapest_format_that_the_budget_allows() -> None:
    table = {"tails": {INT8: 12.0, FP8: 31.0}, "bell": {INT8: 40.0, FP8: 31.0}, "hard": {INT8: 20.0, FP8: 18.0}}
    found = searched(table, dict.fromkeys(table, CHEAP_INT8), Limits(27, 0.3, 8))
    assert found.formats["tails"] is FP8
    assert found.formats["bell"] is INT8
    assert found.restored == ("hard",)
    assert found.met
    assert found.curve[0].sqnr_db == pytest.approx(11.3, abs=0.1)  # all in the cheapest format
    assert found.curve[-1].share == pytest.approx(2 / 3)
    assert decibel(found.alone["tails"][INT8]) == pytest.approx(12, abs=0.01)


def test_high_precision_is_the_choice_where_no_format_is_faster() -> None:
    table = {"conv": {INT8: 60.0, FP8: 50.0}, "gemm": {INT8: 60.0, FP8: 50.0}}
    seconds = {"conv": {"int8": 3.0, "fp8": 2.5, "high": 2.0}, "gemm": CHEAP_INT8}
    found = searched(table, seconds, Limits(30, 0.0, 8))
    assert found.restored == ("conv",)
    assert found.formats["gemm"] is INT8
    never = searched(table, seconds, Limits(30, 0.0, 8, high=False))
    assert never.restored == ()
    assert never.formats == {"conv": FP8, "gemm": INT8}


def test_the_share_that_stays_quantized_counts_every_format() -> None:
    table = {f"g{i}": {INT8: 20.0 + i, FP8: 24.0 - i} for i in range(6)}
    found = searched(table, dict.fromkeys(table, CHEAP_INT8), Limits(60, 0.5, -100))
    assert not found.met
    assert found.curve[-1].share == pytest.approx(0.5)
    quiet = {group: found.formats[group] for group in table if group not in found.restored}
    assert all(table[group][dtype] == max(table[group].values()) for group, dtype in quiet.items())


def test_the_fastest_of_two_formats_that_are_good_enough_is_taken() -> None:
    table = {"g": {INT8: 45.0, FP8: 32.0}}
    found = searched(table, {"g": {"int8": 2.0, "fp8": 1.0, "high": 3.0}}, Limits(25, 0.5, 8))
    assert found.formats == {"g": FP8}
    assert found.costs["g"]["fp8"] == 1.0


class Correlated(Table):
    """Noises of the first two groups add up as amplitudes, so that the sum of powers predicts too little."""

    def __init__(self, table: dict[str, dict[DType, float]]) -> None:
        super().__init__(table)
        first, second, *_ = table
        for dtype in table[second]:
            self._noise[second, dtype] = self._noise[first, dtype]


def test_changes_that_a_dark_prediction_made_in_vain_are_taken_back() -> None:
    table = {"a": {INT8: 20.0}, "b": {INT8: 20.0}, **{f"g{i}": {INT8: 31.0 + i / 4} for i in range(12)}}
    offers = {group: [Use(INT8, 1.0)] for group in table}
    prices = Prices(dict.fromkeys(table, 10), 10 * len(table), {key: {"int8": 1.0, "high": 2.0} for key in table})
    found = find_net(cast(Simulator, Correlated(table)), [{}], offers, prices, Limits(17.5, 0.0, 8))
    assert found.met
    assert found.restored in (("a",), ("b",))
    assert len(found.curve) > 2
    assert found.curve[-1].share == pytest.approx(13 / 14)
    assert 17.5 < found.curve[-1].sqnr_db < 18.5


def test_of_many_groups_the_loud_one_is_found_in_few_runs() -> None:
    table = {f"g{i}": {INT8: 8.0 if i == 37 else 60.0} for i in range(64)}
    found = searched(table, {}, Limits(30, 0.5, 2, runs=48))
    assert found.restored == ("g37",)
    assert set(found.joint) == set(table)
    assert found.noise["g37"] == pytest.approx(10**-0.8, rel=1e-3)
    assert found.runs < 64
    every = searched(table, {}, Limits(30, 0.5, 2, runs=1000))
    assert every.restored == ("g37",)
    assert every.joint == ()
    assert every.runs > 64


def test_the_first_calibrator_that_is_good_enough_ends_the_search(net: Any) -> None:
    found = net(Limits(25, 0.5, 8), {"a2": [5.0, 4.0, 3.0]})
    assert found.met
    assert found.runs == 6  # three in float, three quantized
    assert [point.chosen for point in found.front] == [True]


def test_the_front_goes_from_all_quantized_to_none() -> None:
    table = {f"g{i}": {INT8: 20.0 + i} for i in range(8)}
    found = searched(table, {}, Limits(22, 0.2, -100))
    shares = [point.share for point in found.front]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1, 0)
    assert [point.sqnr_db for point in found.front] == sorted(point.sqnr_db for point in found.front)
    (chosen,) = (point for point in found.front if point.chosen)
    assert chosen.measured
    assert chosen.restored == found.restored
    assert chosen.sqnr_db == found.curve[-1].sqnr_db


def test_each_view_has_to_be_good_enough() -> None:
    class Two(Table):
        """The first group disturbs the second view alone."""

        views: tuple[View, ...] = (View("y", "y", "y", Role.OUTPUT), View("z", "z", "z", Role.OUTPUT))

        def run(self, feeds: Feeds, uses: dict[str, Use]) -> Feeds:
            quiet = {group: use for group, use in uses.items() if group != "g0"}
            loud = {group: use for group, use in uses.items() if group == "g0"}
            return {"y": super().run(feeds, quiet)["y"], "z": super().run(feeds, loud)["y"]}

    table = {f"g{i}": {INT8: 15.0 if i == 0 else 30.0} for i in range(6)}
    offers = {group: [Use(INT8, 1.0)] for group in table}
    prices = Prices(dict.fromkeys(table, 10), 60)
    found = find_net(cast(Simulator, Two(table)), [{}], offers, prices, Limits(20, 0.0, -100))
    assert found.restored == ("g0",)
    assert found.met
