"""AWQ's scaling of a model: what is divided, what is left and why, and that the model still computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.runtime.session import Session
from qcompiler.verification.equivalence import UNDONE, differences
from qcompiler.weight_only.row_trials import RowTrials
from qcompiler.weight_only.scaling import scale
from qcompiler.weight_only.storable import StorableLayer
from tests.kit.rewrite import content, doubling, model, to_graph
from tests.kit.weight_only.correlated import crossed

RNG = np.random.default_rng(1)
WEIGHTS: dict[str, Any] = {
    "g": np.where(np.arange(64) < 3, 40, 1).astype(np.float32),
    "a": RNG.standard_normal((64, 32)).astype(np.float32),
    "b": RNG.standard_normal((64, 32)).astype(np.float32),
}
FEEDS = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(4)]


def normed() -> models.Model:
    """x → LayerNormalization with three large channels → t → two products."""
    nodes = (("LayerNormalization", "x g", "t"), ("MatMul", "t a", "y"), ("MatMul", "t b", "z"))
    graph = to_graph(model(*nodes, inputs={"x": (16, 64)}, outputs=("y", "z"), weights=WEIGHTS))
    return models.Model(graph, {}, None, 8)


def layers(format: Any = "int4", activation: str = "t") -> list[StorableLayer]:
    return [StorableLayer(name, "MatMul", activation, 64, 32, format, 32) for name in ("Y", "Z")]


def recorded(loaded: models.Model, name: str = "t") -> dict[str, RowTrials]:
    session = Session(loaded.graph, outputs=[name])
    values = np.concatenate([session.run(feed)[name] for feed in FEEDS])
    return {name: crossed(values)}


def outputs(loaded: models.Model) -> dict[str, list[Any]]:
    session = Session(loaded.graph)
    return {name: [session.run(feed)[name] for feed in FEEDS] for name in ("y", "z")}


def test_what_gains_is_divided_and_the_model_computes_the_same() -> None:
    loaded = normed()
    written = content(loaded.graph)
    found = scale(loaded, layers(), recorded(loaded), FEEDS, method="awq", half=True)
    assert found.gains["t"] > 0.05
    assert found.scales["t"].shape == (64,)
    assert found.scales["t"][:3].min() > found.scales["t"][3:].mean()
    assert max(differences(outputs(loaded), outputs(found.model)).values()) <= 1e-5
    (report,) = found.reports
    assert found.errors[report.name] <= 1e-5
    assert content(loaded.graph) == written, "the model that was given stays as it is"


def test_scaling_that_misses_the_check_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = normed()
    doubling(monkeypatch, SmoothQuant)
    found = scale(loaded, layers(), recorded(loaded), FEEDS, method="awq", half=True)
    assert found.model is loaded
    assert (found.scales, found.gains, found.errors, found.left) == ({}, {}, {}, {"t": UNDONE})
    assert found.reports[0].undone


@pytest.mark.parametrize(("method", "format"), [("awq+gptq", "int4"), ("awq", "int8")])
def test_a_small_gain_is_not_worth_an_edit_where_others_find_it_too(method: str, format: str) -> None:
    flat = {**WEIGHTS, "g": np.ones(64, np.float32)}
    nodes = (("LayerNormalization", "x g", "t"), ("MatMul", "t a", "y"), ("MatMul", "t b", "z"))
    graph = to_graph(model(*nodes, inputs={"x": (16, 64)}, outputs=("y", "z"), weights=flat))
    loaded = models.Model(graph, {}, None, 8)
    found = scale(loaded, layers(format), recorded(loaded), FEEDS, method=method, half=True)
    assert found.model is loaded
    assert (found.scales, found.reports, found.errors) == ({}, (), {})
    assert found.left == {"t": "no scaling gains 1 dB"}


def test_an_input_of_the_model_cannot_be_divided() -> None:
    graph = to_graph(model(("MatMul", "x a", "y"), inputs={"x": (16, 64)}, weights={"a": WEIGHTS["a"]}))
    loaded = models.Model(graph, {}, None, 8)
    seen = {"x": crossed(np.concatenate([one["x"] for one in FEEDS]))}
    found = scale(loaded, layers(activation="x")[:1], seen, FEEDS, method="awq", half=True)
    assert found.left["x"].startswith("no producer can absorb it: ")
    assert found.model is loaded
