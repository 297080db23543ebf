"""A model that is run a few layers at a time gives the numbers that one session gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.errors import DataError
from qcompiler.ir import model as models
from qcompiler.ir.made import WidenedWeights
from qcompiler.ir.signature import Feeds
from qcompiler.runtime import chain
from qcompiler.runtime.session import Session
from qcompiler.runtime.stream import OpenModel, Stream, fill
from qcompiler.statistics.hessian import hessians
from qcompiler.statistics.histogram import Histograms
from qcompiler.support import memory
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(8)
WIDTH = 520  # a weight of 1.08 MB
LAYERS = 6
FEEDS = [{"x": RNG.standard_normal((3, WIDTH)).astype(np.float32)} for _ in range(5)]
TAPPED = [f"h{at}" for at in range(LAYERS)]


def layers() -> models.Model:
    """Products with ReLU and a residual stream around every second one."""
    nodes, before = list[Spec](), "x"
    weights = {f"w{at}": RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32) * 0.05 for at in range(LAYERS)}
    for at in range(LAYERS):
        nodes += [("MatMul", f"{before} w{at}", f"p{at}"), ("Relu", f"p{at}", f"h{at}")]
        before = f"h{at}"
        if at % 2:
            nodes.append(("Add", f"{before} x", f"r{at}"))
            before = f"r{at}"
    proto = model(*nodes, inputs={"x": ("n", WIDTH)}, outputs=(before,), weights=weights)
    return models.Model(to_graph(proto), {}, None, proto.ir_version)


MODEL = layers()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[None]:
    """Room for two weights at a time."""
    with memory.limited(8 * 2 * 4 * WIDTH * WIDTH, tmp_path):
        assert memory.weigh(LAYERS * 4 * WIDTH * WIDTH)
        yield


def alone() -> Session:
    return Session(MODEL, quick=True, outputs=[*TAPPED, MODEL.graph.outputs[0].name])


@pytest.mark.usefixtures("short")
def test_segments_hold_as_many_weights_as_there_is_room_for() -> None:
    proto, weights = models.to_proto(MODEL.graph)
    found = chain.starts(chain.with_types(proto), weights)
    assert [proto.graph.node[at].name or proto.graph.node[at].op_type for at in found]
    assert len(found) == LAYERS // 2


@pytest.mark.usefixtures("short")
def test_a_run_gives_what_one_session_gives() -> None:
    opened, known = OpenModel(MODEL, outputs=["h1", "h4", "x"]), alone()
    assert isinstance(opened._session, chain.Chain)
    assert opened.inputs.keys() == {"x"}
    for feed in FEEDS:
        found, expected = opened.run(feed), known.run(feed)
        np.testing.assert_array_equal(found["h1"], expected["h1"])
        np.testing.assert_array_equal(found["h4"], expected["h4"])
        assert found["x"] is feed["x"]


@pytest.mark.usefixtures("short")
def test_a_feed_that_does_not_fit_is_told_as_one_of_the_model() -> None:
    with pytest.raises(DataError) as refused:
        OpenModel(MODEL).run({"x": np.zeros((3, 4), np.float32)})
    assert refused.value.fed is not None
    assert refused.value.fed["x"].shape == (3, 4)


@pytest.mark.usefixtures("short")
def test_segments_run_all_feeds_before_the_next_does_and_read_their_weights_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = models.copy(MODEL)
    stored = {}
    for node in half.graph.nodes:
        if node.op == "MatMul":
            stored[node.inputs[1].name] = np.asarray(node.inputs[1].values, np.float16)
            node.inputs[1].values = WidenedWeights(stored[node.inputs[1].name])
    made: list[int] = []
    load = WidenedWeights.load

    def counted(one: WidenedWeights) -> Any:
        made.append(id(one.stored))
        return load(one)

    monkeypatch.setattr(WidenedWeights, "load", counted)
    order = [(part.index, sorted(part.values)) for part in Stream(half, TAPPED).over(list(enumerate(FEEDS)))]
    assert [index for index, _ in order] == [*range(len(FEEDS))] * (len(order) // len(FEEDS))
    assert sorted(name for index, names in order if not index for name in names) == sorted(TAPPED)
    assert len(made) == LAYERS == len(set(made))


@pytest.mark.usefixtures("short")
def test_statistics_are_those_of_one_session() -> None:
    seen, known = Histograms(TAPPED), Histograms(TAPPED)
    counted: list[int] = []
    fill(MODEL, [seen], FEEDS, advance=counted.append)
    assert sum(counted) == len(FEEDS)
    for part in (alone().run(feed) for feed in FEEDS):
        for name in TAPPED:
            known.found[name].update(part[name])
    assert {name: one.amax for name, one in seen.found.items()} == {n: one.amax for n, one in known.found.items()}


@pytest.mark.usefixtures("short")
def test_hessians_of_all_layers_take_one_run_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = Session._run

    def counted(one: Session, feeds: Feeds) -> Feeds:
        ran.extend(one.outputs)
        return run(one, feeds)

    monkeypatch.setattr(Session, "_run", counted)
    depths = dict.fromkeys(["x", "h0", "h2"], WIDTH)
    found = {}
    for some in hessians(MODEL, depths, FEEDS, budget=8 * WIDTH * WIDTH):
        assert len(some) <= 2
        found.update(some)
    assert [ran.count(name) for name in ("h0", "h2")] == [len(FEEDS)] * 2
    for name in depths:
        rows = np.concatenate([{**feed, **alone().run(feed)}[name] for feed in FEEDS]).astype(np.float64)
        np.testing.assert_allclose(found[name][0].hessian, rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_a_large_model_is_run_without_a_limit_as_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "LARGE", 1)
    opened = OpenModel(MODEL)
    assert isinstance(opened._session, chain.Chain)
    name = MODEL.graph.outputs[0].name
    np.testing.assert_array_equal(opened.run(FEEDS[0])[name], alone().run(FEEDS[0])[name])
