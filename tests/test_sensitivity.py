"""The safety net: the layer that does the damage goes, the others stay, and limits are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import decide
from qcompiler import model as models
from qcompiler.bias import Shifts
from qcompiler.macs import concrete_shapes
from qcompiler.sensitivity import Limits, Prices, SafetyNet, energy, power, search, sqnr_db
from qcompiler.simulate import Simulator, Use
from qcompiler.target import DType, parse_target
from tests.rewrite import model

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
    found, _ = decide.candidates(loaded.graph, parse_target("tensorrt-rtx"))
    groups = decide.by_activation(found)
    shapes = concrete_shapes(loaded.graph, feeds[0], decide.tensors_for_shapes(loaded.graph))
    macs = {name: decide.node_macs(loaded.graph, shapes)[one[0].node] for name, one in groups.items()}

    def run(limits: Limits, wrong: dict[str, list[float]], total: int | None = None, advance: Any = None) -> SafetyNet:
        ranges = {name: wrong.get(name, [5.0]) for name in groups}
        simulator = Simulator(loaded, groups, Shifts(loaded, groups, ranges, feeds))
        offers = {name: [Use(DType.INT8, value) for value in values] for name, values in ranges.items()}
        return search(simulator, feeds, offers, Prices(macs, total or sum(macs.values())), limits, advance)

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
    found = net(Limits(25, 0.5, 8, range_groups=50), crossed)
    assert found.restored == ()
    assert (found.amax["a1"], found.amax["a2"]) == (5.0, 5.0)
    assert found.met
    assert found.curve[-1].share == 1
    without = net(Limits(25, 0.5, 8, range_groups=0), crossed)
    assert 0.05 in (without.amax["a1"], without.amax["a2"])
    assert without.restored


def test_the_search_starts_from_the_best_single_calibrator(net: Any) -> None:
    found = net(Limits(25, 0.5, 8, range_groups=0), {"a2": [0.05, 5.0]})
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
    limits, wrong = Limits(30, 0.3, 8, range_groups=20), {"a1": [0.1, 1.0], "a3": [0.5]}
    assert net(limits, wrong) == net(limits, wrong)


def test_figures() -> None:
    assert power(20) == pytest.approx(0.01)
    assert sqnr_db(0.01) == pytest.approx(20)
    assert sqnr_db(0) == 200
    assert energy(np.full((2, 2), 3, np.float32)) == 36
