"""The first rungs as stages; which nets they help: tests/compiler/test_ladder.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.decide import decide
from qcompiler.compiler.stages.equalize import calibrate, equalize
from qcompiler.compiler.subject import Subject
from qcompiler.errors import UsageError
from qcompiler.planning import planner
from qcompiler.planning.ready import Ready
from tests.kit.subjects import Standing, of_net
from tests.kit.vision import planted


def climbed(standing: Standing, *, forced: bool = False) -> Subject:
    asked = standing.asked
    return standing.run(equalize, standing.subject, asked.watch, asked.target, asked.planning, forced)


def test_an_equalized_subject_is_observed_and_stands_higher(tmp_path: Path) -> None:
    standing = of_net("equalize", planted.net(factor=100.0), planted.feeds(16), tmp_path)
    before, after = standing.subject, climbed(standing)
    assert after.model is not before.model
    assert before.standing is not None
    assert after.standing is not None
    assert after.standing.sqnr_db > before.standing.sqnr_db + 15
    assert {one.activation for one in after.layers.found} <= set(after.seen.histograms)
    ((report, error),) = standing.run.passes["equalize"]
    assert report.changed
    assert error is not None
    assert error < 1e-4


def test_a_net_that_meets_the_goal_stays_as_it_is(tmp_path: Path) -> None:
    standing = of_net("equalize", planted.net(), planted.feeds(16), tmp_path)
    assert climbed(standing) is standing.subject


def test_what_gains_nothing_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = of_net("equalize", planted.net(factor=100.0), planted.feeds(16), tmp_path)
    first = standing.subject.standing
    assert first is not None
    monkeypatch.setattr("qcompiler.planning.climb.Climb.best", lambda self: first)
    after = climbed(standing)
    assert after.model is standing.subject.model
    assert after.standing == first.in_vain("equalize")
    told = standing.run.records["rungs"]["equalize"]
    assert told["tried"]
    assert not told["kept"]
    assert told["gain_db"] == 0.0
    assert standing.run.passes["equalize"] == ()
    ready = standing.run.lent(Ready)  # the session of the model that goes on
    assert ready is not None
    assert ready.asked[0] is standing.subject.model


def test_an_order_is_told_as_such(tmp_path: Path) -> None:
    standing = of_net("equalize", planted.net(factor=100.0), planted.feeds(16), tmp_path, equalize=True)
    assert standing.subject.standing is not None
    assert standing.subject.standing.met
    assert climbed(standing, forced=True) is standing.subject
    assert standing.run.records["rungs"]["equalize"]["why"].startswith("--equalize asked for it")


def test_known_ranges_forbid_it(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text('{"a1": 3.0}')
    path = str(tmp_path / "ranges.json")
    standing = of_net("equalize", planted.net(factor=100.0), planted.feeds(16), tmp_path, ranges=path)
    assert climbed(standing) is standing.subject
    assert "would not fit" in standing.run.records["rungs"]["equalize"]["why"]
    with pytest.raises(UsageError, match="--equalize rescales"):
        of_net("equalize", planted.net(), planted.feeds(8), tmp_path, ranges=path, equalize=True)


def test_nothing_is_judged_where_no_activation_is_quantized(tmp_path: Path) -> None:
    standing = of_net("calibrate", planted.net(), planted.feeds(8), tmp_path, precision="fp16")
    after = standing.run(calibrate, standing.subject, standing.asked.target, standing.asked.planning)
    assert after is standing.subject
    assert "rungs" not in standing.run.records


def test_the_session_is_handed_on_to_whoever_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = of_net("smooth_quant", planted.net(), planted.feeds(16), tmp_path)

    def refused(*_: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(planner, "prepared", refused)
    standing.run(decide, standing.subject, standing.asked.target, standing.asked.planning)
    assert standing.run.lent(Ready) is None


METRIC = """
import numpy as np

rng = np.random.default_rng(5)
FEEDS = [{{"x": rng.standard_normal((1, 3, 24, 24)).astype(np.float32)}} for _ in range(16)]


def score(run):
    return float(np.mean([{how} for y in (np.asarray(run(feed)[0]) for feed in FEEDS)]))
"""


@pytest.mark.parametrize(("how", "holds"), [("y.size", True), ("-np.abs(y.ravel()[::7].sum())", False)])
def test_the_metric_has_the_word_where_there_is_one(tmp_path: Path, how: str, holds: bool) -> None:
    (tmp_path / "m.py").write_text(METRIC.format(how=how))
    metric = f"{tmp_path / 'm.py'}:score"
    standing = of_net("calibrate", planted.net(factor=100.0), planted.feeds(16), tmp_path, metric=metric)
    asked = standing.asked
    after = standing.run(calibrate, standing.subject, asked.target, asked.planning)
    assert after.standing is not None
    assert after.standing.sqnr_db < after.standing.goal_db
    assert after.standing.accepted is after.standing.met is holds
    told = standing.run(equalize, after, asked.watch, asked.target, asked.planning)
    assert (told is after) is holds
    if holds:
        assert standing.run.records["rungs"]["equalize"]["why"].startswith("the metric holds before it")
