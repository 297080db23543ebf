"""All layers at once on one sample: what it says of formats, and of what cannot be looked at."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qcompiler.ir.model import Model
from qcompiler.plan import Candidate
from qcompiler.planning.placement.candidates import by_activation, find_candidates
from qcompiler.planning.simulation.first_look import FirstLook, first_look
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import histograms
from qcompiler.target import DType, parse_target
from tests.kit.cases import transformer
from tests.kit.rewrite import to_graph

FEED = {"x": np.random.default_rng(3).standard_normal((1, 16, 64)).astype(np.float32)}


def ready() -> tuple[Model, dict[str, list[Candidate]], dict[str, Histogram]]:
    model = Model(to_graph(transformer()), {}, None, 10)
    groups = {name: list(members) for name, members in by_activation(found(model)).items()}
    return model, groups, histograms(model, list(groups), [FEED])


def found(model: Model) -> list[Candidate]:
    return list(find_candidates(model.graph, parse_target("tensorrt-rtx"), ()).found)


def look(groups: dict[str, list[Candidate]], seen: dict[str, Histogram], dtype: DType = DType.INT8) -> FirstLook | None:
    return first_look(Model(to_graph(transformer()), {}, None, 10), groups, seen, FEED, dtype=dtype, per_channel=True)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
def test_it_says_how_near_to_float_all_layers_come_and_how_long_a_run_takes(dtype: DType) -> None:
    _, groups, seen = ready()
    known = look(groups, seen, dtype)
    assert known is not None
    assert 20 < known.sqnr_db < 60
    assert known.seconds > 0
    assert known.opening > 0
    assert known.runs == 3  # in float, and in two ranges


def test_layers_that_came_quantized_or_read_nothing_are_left_out() -> None:
    _, groups, seen = ready()
    stored = {
        name: [dataclasses.replace(one, scales=np.ones((), np.float32)) for one in members]
        for name, members in groups.items()
    }
    assert look(stored, seen) is None
    assert look(groups, {}) is None
    silent = Histogram.of(np.zeros(4, np.float32))
    assert look(groups, dict.fromkeys(groups, silent)) is None
