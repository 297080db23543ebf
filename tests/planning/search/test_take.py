"""The plan that is taken: by a metric, by dB over all samples, by the user's pick, or the next one after a miss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import UsageError
from qcompiler.ir import model as models
from qcompiler.planning.placement import candidates
from qcompiler.planning.search.checks import Samples
from qcompiler.planning.search.front import FrontPoint
from qcompiler.planning.search.goal import DEFAULT, METRIC, SQNR, Check, Goal
from qcompiler.planning.search.moves import Step
from qcompiler.planning.search.qfem import NOTHING
from qcompiler.planning.search.safety_net import Limits, Prices, SafetyNet, find_net
from qcompiler.planning.search.take import RECORDED, VAIN, Judging, Pinned, at_point, by_goal, next_point
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.target import DType, parse_target
from qcompiler.verification.metrics.halves import MetricHalves
from tests.kit.rewrite import model

LAYERS, SIZE = 6, 32
Feeds = list[dict[str, Any]]


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    """Six products in a row; the ranges of some are too narrow."""
    rng = np.random.default_rng(8)
    nodes: list[tuple[Any, ...]] = []
    values = {}
    for k in range(LAYERS):
        before, after = "x" if k == 0 else f"a{k - 1}", "y" if k == LAYERS - 1 else f"a{k}"
        nodes.append(("MatMul", f"{before} w{k}", after))
        values[f"w{k}"] = (rng.standard_normal((SIZE, SIZE)) / np.sqrt(SIZE)).astype(np.float32)
    onnx.save(model(*nodes, inputs={"x": (SIZE, SIZE)}, weights=values), tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    found, _ = candidates.find_candidates(loaded.graph, parse_target("tensorrt-rtx"))
    groups = candidates.by_activation(found)
    return Simulator(loaded, groups, Shifts(loaded, groups, {name: [use.amax] for name, use in USES.items()}, feeds(2)))


RANGES = {"x": 4.0, "a0": 0.3, "a1": 4.0, "a2": 1.0, "a3": 4.0, "a4": 1.5}
USES = {name: Use(DType.INT8, amax) for name, amax in RANGES.items()}


def feeds(count: int, seed: int = 9) -> Feeds:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


def searched(simulator: Simulator, target_db: float, accept: Any = None) -> SafetyNet:
    prices = Prices(dict.fromkeys(USES, SIZE**3), LAYERS * SIZE**3)
    offers = {name: [use] for name, use in USES.items()}
    return find_net(simulator, feeds(4), offers, prices, Limits(target_db, 0.0, 8), accept=accept)


def metric(simulator: Simulator, calls: int = 16) -> tuple[Callable[[Any], MetricHalves], Callable[[Any], float]]:
    """How far outputs are from those of the float model, as a score of 10 and less; and the score itself."""
    data = feeds(calls, seed=20)
    wanted = [simulator.infer(feed, {})["y"] for feed in data]

    def score(run: Any) -> float:
        missed = [float(np.mean((run(feed)["y"] - y) ** 2)) for feed, y in zip(data, wanted, strict=True)]
        return 10 - float(np.mean(missed))

    return lambda run: MetricHalves(score, run), score


def judging(simulator: Simulator, goal: Goal, min_sqnr: float | None = None) -> Judging:
    return Judging.of(goal, simulator, Samples(simulator, feeds(6)), metric(simulator)[0], min_sqnr)


def test_a_metric_that_does_not_mind_ends_the_search_at_once(simulator: Simulator) -> None:
    easy = judging(simulator, Goal(METRIC, 0.5))
    net, reached = by_goal(searched(simulator, 40.0, easy.accepts), easy, None, 6)
    assert (net.restored, len(net.front), reached.checks) == ((), 1, 1)
    assert net.curve[-1].sqnr_db < 10  # whatever its dB
    assert net.met
    assert reached.to_json()["met"] is True
    assert reached.check is not None
    assert easy.halves is not None
    assert easy.halves.evaluations == 1 + 4  # one plan, and its four chunks


def test_the_cheapest_plan_that_the_metric_takes_is_found_in_few_looks(simulator: Simulator) -> None:
    strict = judging(simulator, Goal(METRIC, 0.02))
    net, reached = by_goal(searched(simulator, 25.0, strict.accepts), strict, None, 6)
    chosen = next(at for at, one in enumerate(net.front) if one.chosen)
    assert 0 < chosen < len(net.front) - 1
    assert reached.check is not None
    assert reached.check.holds
    assert reached.checks <= 6
    assert reached.why == "the cheapest plan of the front that holds the goal"
    assert not strict.check(net.front[chosen - 1].uses).holds
    _, score = metric(simulator)
    whole = 10 - score(lambda feed: simulator.infer(feed, net.front[chosen].uses))
    assert whole / 10 <= 0.02  # the half that nothing was chosen by, too


def test_dB_must_be_reached_on_all_samples_with_the_margin(simulator: Simulator) -> None:  # noqa: N802
    wanted = judging(simulator, Goal(SQNR, 20.0))
    net, reached = by_goal(searched(simulator, 20.0, wanted.accepts), wanted, None, 12)
    assert reached.check is not None
    assert reached.check.holds
    assert reached.check.figure - reached.check.margin >= 20.0
    assert reached.check.margin > 0
    assert net.curve[-1].sqnr_db == pytest.approx(reached.check.figure)
    assert net.restored
    assert net.met


def test_what_is_in_doubt_on_all_samples_gives_back_down_to_the_lower_floor(simulator: Simulator) -> None:
    def taken(**lines: float) -> SafetyNet:
        wanted = judging(simulator, Goal(DEFAULT, 90.0, min_share=0.5, **lines))  # type: ignore[arg-type]
        return by_goal(searched(simulator, 15.0), wanted, None, 12)[0]

    kept, lowered = taken(), taken(doubtful_db=80.0, least_share=0.3)
    assert (len(kept.restored), len(lowered.restored)) == (3, 4)
    assert lowered.curve[-1].sqnr_db > kept.curve[-1].sqnr_db


def test_a_gate_of_dB_beside_a_metric_holds_too(simulator: Simulator) -> None:  # noqa: N802
    both = judging(simulator, Goal(METRIC, 0.5), min_sqnr=30.0)
    net, reached = by_goal(searched(simulator, 30.0, both.accepts), both, None, 12)
    assert reached.check is not None
    assert reached.check.holds
    assert net.curve[-1].sqnr_db >= 30.0


@pytest.mark.parametrize("pick", ["fastest", "most-accurate", "knee", 0, 0.5])
def test_what_the_user_picks_is_taken_and_held_against_the_goal(simulator: Simulator, pick: Any) -> None:
    asked = judging(simulator, Goal(SQNR, 20.0))
    net, reached = by_goal(searched(simulator, 20.0, asked.accepts), asked, pick, 6)
    (point,) = [one for one in net.front if one.chosen]
    assert reached.why == f"picked: {pick}"
    assert reached.check is not None
    assert reached.check.holds is net.met
    assert set(net.restored) == {name for name in USES if name not in point.uses}
    if pick == "most-accurate":
        assert point.share < 0.5
    if pick == 0.5:
        assert point.share == pytest.approx(0.5)
    if pick in ("fastest", 0):
        assert point.share == 1.0


def test_a_missed_gate_goes_on_to_the_next_point_that_promises_enough() -> None:
    some = {"x": USES["x"]}
    front = [FrontPoint(1 - at / 10, 20.0 + at / 2, None, (), some, chosen=at == 3) for at in range(9)]
    net = SafetyNet(front=(*front, FrontPoint(0.0, np.inf, None, ("x",))))
    assert next_point(net, 0.0) == 3 + 2  # a whole dB
    assert next_point(net, 2.0) == 3 + 4
    assert next_point(net, 20.0) == 8  # the last one with anything quantized
    assert next_point(at_point(net, 8), 0.0) is None
    assert next_point(SafetyNet(), 0.0) is None


def test_beyond_a_plan_that_missed_another_is_taken(simulator: Simulator) -> None:
    asked = judging(simulator, Goal(METRIC, 0.5))
    net, reached = by_goal(searched(simulator, 25.0, lambda uses, quiet: False), asked, None, 6, beyond=True)
    assert [one.chosen for one in net.front][:2] == [False, True]
    assert reached.check is not None
    assert reached.check.holds
    alone = searched(simulator, 25.0, lambda uses, quiet: True)
    assert by_goal(alone, asked, None, 6, beyond=True)[0].front[0].chosen


def test_a_point_is_what_a_search_would_have_ended_with(simulator: Simulator) -> None:
    net = searched(simulator, 20.0)
    other = at_point(net, 2)
    point = other.front[2]
    assert [one.chosen for one in other.front] == [at == 2 for at in range(len(net.front))]
    assert other.restored == point.restored
    assert other.curve == (*net.curve, other.curve[-1])
    assert other.curve[-1].share == point.share
    assert at_point(net, 2, 33.0).front[2].sqnr_db == 33.0
    assert net == searched(simulator, 20.0)  # as it was handed on


def test_a_pinned_point_offers_its_own_ranges(simulator: Simulator) -> None:
    pinned = Pinned(at_point(searched(simulator, 20.0), 1), NOTHING, None, {"x": "minmax"})
    offers, words = pinned.offers(dict.fromkeys(USES), {"a1": {USES["a1"]: "entropy"}})
    assert {name: uses[0] for name, uses in offers.items()} == USES
    assert [words[name][USES[name]] for name in ("x", "a1", "a0")] == ["minmax", "entropy", RECORDED]
    with pytest.raises(UsageError, match="no range for 'other'"):
        pinned.offers({"other": ()}, {})


def test_a_search_that_has_nothing_to_choose_from_stays(simulator: Simulator) -> None:
    asked = judging(simulator, Goal(SQNR, 20.0))
    net, reached = by_goal(SafetyNet(), asked, "knee", 6)
    assert net == SafetyNet()
    assert reached.check is None


def test_where_few_samples_miss_already_the_others_are_not_run(simulator: Simulator) -> None:
    asked = judging(simulator, Goal(SQNR, 20.0))
    assert not asked.accepts(USES, False)
    assert asked.samples.runs == 0


@pytest.mark.parametrize(
    ("cheaper_db", "reached_db", "goal", "taken"),
    [
        (14.4, 15.2, Goal(DEFAULT, 25.0, doubtful_db=20.0), 0),  # in doubt all the same, and less than 1 dB better
        (13.9, 15.2, Goal(DEFAULT, 25.0, doubtful_db=20.0), 1),
        (19.5, 20.2, Goal(DEFAULT, 25.0, doubtful_db=20.0), 1),  # beyond doubt
        (14.4, 15.2, Goal(DEFAULT, 25.0, doubtful_db=25.0), 1),  # the next token is drawn by it
        (14.4, 15.2, Goal(DEFAULT, 25.0), 1),  # a number of the user's
        (14.4, 15.2, Goal(SQNR, 25.0), 1),  # a gate
    ],
)
def test_layers_that_gain_next_to_nothing_do_not_go_back_in_vain(
    simulator: Simulator, cheaper_db: float, reached_db: float, goal: Goal, taken: int
) -> None:
    looks = {0.8: cheaper_db, 0.7: reached_db, 0.0: 99.0}
    shares = {len(USES) - at: share for at, share in enumerate(looks)}
    floor, samples = replace(goal, min_share=0.6, least_share=0.6), Samples(simulator, feeds(2))
    asked = Judging(floor, lambda uses: Check(False, looks[shares[len(uses)]], 0.0), samples, None)
    front = [
        FrontPoint(share, db, None, (), dict([*USES.items()][: len(USES) - at]), measured=True, chosen=at == 1)
        for at, (share, db) in enumerate(looks.items())
    ]
    net, reached = by_goal(SafetyNet(front=tuple(front), curve=(Step(0.7, reached_db),)), asked, None, 6)
    assert [one.chosen for one in net.front].index(True) == taken
    assert reached.check == Check(False, [cheaper_db, reached_db][taken], 0.0)
    assert reached.why.startswith(VAIN) is (taken == 0)
    assert not net.met
