"""One feed, run and counted: how many samples it stands for, and how often the model is run for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.deal import deal
from qcompiler.data.source import open_source
from qcompiler.ir.model import Model
from qcompiler.ir.signature import inputs_of
from qcompiler.runtime.session import Session
from qcompiler.statistics import timed as timing
from qcompiler.statistics.points import Points
from qcompiler.statistics.timed import Timed, timed
from tests.kit.cases import transformer
from tests.kit.rewrite import to_graph

MACS = 16 * (4 * 64 * 64 + 2 * 64 * 256) + 2 * 16 * 16 * 64  # of one sample


def look(count: int, rows: int = 1, *, batch: int | None = None, axes: BatchAxes = NO_BATCH) -> Timed:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((rows, 16, 64)).astype(np.float32)} for _ in range(count)]
    model = Model(to_graph(transformer()), {}, None, 10)
    source = open_source(feeds, inputs_of(model.graph), batch=batch).along(axes)
    points = Points.of(histograms=["l1"], outliers={"l1": -1, "h2": -1})
    return timed(model, points, source, deal(source), axes)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    run = Session.run

    def counted(self: Session, feeds: Any) -> Any:
        seen.extend(self.outputs)
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", counted)
    return seen


def test_each_kind_of_run_is_timed_and_the_parts_are_known() -> None:
    known = look(20)
    assert (known.calibrate, known.choose, known.judge) == (12, 4, 4)
    assert (known.kept, known.choosing) == (12, 4)
    assert known.macs == MACS
    assert min(known.clock.run, known.clock.counted, known.clock.observed, known.clock.session) > 0
    assert known.seen.histograms["h2"].count == 2 * 16 * 256


def test_without_a_part_to_choose_by_it_is_the_kept_samples() -> None:
    known = look(2)
    assert (known.choose, known.choosing) == (0, known.kept)


@pytest.mark.parametrize("batch", [None, 4])
def test_samples_in_batches_are_counted_one_by_one(batch: int | None) -> None:
    axes = BatchAxes({"x": 0})
    known = look(20, 3, batch=batch, axes=axes)
    assert known.calibrate + known.choose + known.judge == 60
    assert known.macs == MACS  # of one of them


def test_a_model_that_takes_long_is_run_once_in_each_way(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    twice = look(8)
    assert runs.count("y") == 2
    assert twice.runs == 6
    runs.clear()
    monkeypatch.setattr(timing, "_ONCE", 0.0)
    once = look(8)
    assert runs.count("y") == 1
    assert once.runs == 3


def test_a_look_at_quantized_layers_takes_the_place_of_the_plain_run() -> None:
    known = look(8)
    after = known.looked(0.5, 31.0, 3)
    assert (after.sqnr_db, after.runs) == (31.0, known.runs + 3)
    assert after.clock.quantized == 0.5 * known.scale
    assert after.clock.run == known.clock.run
