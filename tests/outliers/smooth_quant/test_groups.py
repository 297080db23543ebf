"""Alpha and scales of every group of layers: what is smoothed, what is not and why, and what is seen behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant.groups import (
    SmoothGroup,
    channel_axes,
    channel_axis,
    choose_scales,
    divisible,
    observed_again,
    record_of,
)
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.plan import Candidate
from qcompiler.planning.placement.candidates import find_candidates
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.runtime.session import Session
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.outliers import Outliers
from qcompiler.statistics.rows import Rows
from qcompiler.target import parse_target
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(0)
OUTLIER = np.where(np.arange(32) < 2, 80, 1).astype(np.float32)
WEIGHT = RNG.standard_normal((32, 32)).astype(np.float32) / np.where(OUTLIER > 1, 80, 1)[:, None].astype(np.float32)
FEEDS = [{"x": RNG.standard_normal((8, 32)).astype(np.float32)} for _ in range(4)]
NORMED: tuple[Spec, ...] = (("LayerNormalization", "x g", "t"), ("MatMul", "t w", "y"))
TARGET = parse_target("tensorrt-rtx")


def loaded(*nodes: Spec) -> models.Model:
    read = {name for node in nodes for name in node[1].split()}
    held: dict[str, Any] = {"g": OUTLIER, "w": WEIGHT, "k": RNG.standard_normal((16, 32, 3, 3)).astype(np.float32)}
    inputs = {"x": (1, 32, 8, 8)} if any(node[0] == "Conv" for node in nodes) else {"x": (8, 32)}
    weights = {name: value for name, value in held.items() if name in read}
    return models.Model(to_graph(model(*nodes, inputs=inputs, weights=weights, opset=21)), {}, None, 21)


def groups_of(graph: gs.Graph) -> dict[str, list[Candidate]]:
    return dict(find_candidates(graph, TARGET).by_activation)


def planned(
    *nodes: Spec, rows: dict[str, Rows] | None = None, insert: bool = False, **table: Any
) -> tuple[models.Model, list[SmoothGroup]]:
    one = loaded(*nodes)
    found = groups_of(one.graph)
    if rows is None:
        session = Session(one.graph, outputs=list(found))
        values = {name: np.concatenate([session.run(feed)[name] for feed in FEEDS]) for name in found}
        rows = {name: Rows(value, np.ones(len(value), np.float32)) for name, value in values.items()}
    seen = {name: Outliers() for name in found}
    for name, recorded in rows.items():
        seen[name].update(recorded.values)
    return one, choose_scales(one, found, rows, seen, SmoothQuantTable(insert=insert, **table))


def test_outliers_behind_a_norm_are_absorbed_by_it() -> None:
    _, (group,) = planned(*NORMED)
    assert (group.tensor, group.readers, group.how) == ("t", ("Y",), "absorbed")
    assert group.alpha is not None
    assert group.gain_db > 1
    assert group.why == f"its layers err {group.gain_db:.1f} dB less"
    assert group.scales[:2].min() > group.scales[2:].max()


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"alpha": "off"}, "smoothing is off"),
        ({"alpha": "off", "layers": {"Z": 0.5}}, "no alpha gains 0.2 dB"),
    ],
)
def test_what_nobody_asked_for_is_left(table: dict[str, Any], why: str) -> None:
    _, (group,) = planned(*NORMED, **table)
    assert (group.alpha, group.how, group.why, group.gain_db) == (None, "", why, 0.0)
    assert group.scales.size == 0


def test_a_layer_may_have_an_alpha_of_its_own() -> None:
    _, (group,) = planned(*NORMED, alpha="off", layers={"^Y$": 0.6})
    assert group.alpha == 0.6


def test_an_input_of_the_model_is_only_divided_by_a_multiplication() -> None:
    raw = [{"x": feed["x"] * OUTLIER} for feed in FEEDS]
    rows = {"x": Rows(np.concatenate([feed["x"] for feed in raw]), np.ones(32, np.float32))}
    _, (group,) = planned(("MatMul", "x w", "y"), rows=rows)
    assert group.why.startswith("no producer can absorb it: ")
    _, (group,) = planned(("MatMul", "x w", "y"), rows=rows, insert=True)
    assert group.how == "inserted"


def test_rows_are_asked_for_where_something_can_take_the_division() -> None:
    one = loaded(*NORMED)
    assert divisible(one.graph, groups_of(one.graph), SmoothQuantTable()) == {"t": -1}
    one = loaded(("MatMul", "x w", "y"))
    assert divisible(one.graph, groups_of(one.graph), SmoothQuantTable()) == {}
    assert divisible(one.graph, groups_of(one.graph), SmoothQuantTable(insert=True)) == {"x": -1}


def test_what_was_not_observed_is_left() -> None:
    _, (group,) = planned(*NORMED, rows={})
    assert group.why == "nothing was observed of its activation"


def test_convolutions_are_smoothed_on_request() -> None:
    one = loaded(("Relu", "x", "r"), ("Conv", "r k", "y"))
    found = groups_of(one.graph)
    assert channel_axes(found, SmoothQuantTable()) == {}
    assert channel_axes(found, SmoothQuantTable(convolutions=True)) == {"r": 1}
    assert channel_axis(found["r"]) == 1
    (group,) = choose_scales(one, found, {}, {}, SmoothQuantTable())
    assert group.why == "convolutions are only smoothed on request (smooth_quant.convolutions)"


def test_the_record_counts_what_became_of_the_groups() -> None:
    some = [SmoothGroup("t", ("Y",), 0.5, "absorbed", "why", 1.23456), SmoothGroup("u", ("Z",), None, "", "no")]
    found = record_of(some, {"0.5": 30.123, "off": 20.0})
    assert found is not None
    assert (found["folded"], found["inserted"], found["skipped"]) == (1, 0, 1)
    assert found["groups"][0]["gain_db"] == 1.235
    assert found["tried"] == {"0.5": 30.12, "off": 20.0}
    assert record_of([], {}) is None


def test_what_smoothing_changed_is_seen_again_and_nothing_else() -> None:
    before, (group,) = planned(*NORMED)
    after = models.copy(before)
    SmoothQuant({"t": group.scales}, split=True)(after.graph)
    session = Session(before.graph, outputs=["t"])
    seen, outliers = Histogram.of(np.ones(1, np.float32)), Outliers()
    for feed in FEEDS:
        outliers.update(session.run(feed)["t"])
    known = Observations(histograms={"t": seen, "y": seen}, kept=tuple(FEEDS[:1]), outliers={"t": outliers})
    found = observed_again(before, after, known, ["t", "y", "x"], [group])
    assert found.keys() == {"t"}  # y computes what it did, x is an input
    assert found["t"].amax == pytest.approx((outliers.channels / group.scales).max(), rel=1e-4)
