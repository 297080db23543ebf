"""Estimates rank layers as the exact study does, from fewer samples, and say how sure they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir.signature import Feeds
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.progress import silent
from qcompiler.tools.sensitivity.certainty import rank_correlation
from qcompiler.tools.sensitivity.layer_study import StudyErrors
from qcompiler.tools.sensitivity.sampling import FIRST, LOUD, Pool, first_of, on_all, on_few
from qcompiler.tools.sensitivity.sensitivity import Sensitivity, sensitivity
from tests.kit import glu
from tests.kit.rewrite import model
from tests.kit.tools.studied import saved

SAMPLES = 40


class Told:
    """A study whose errors are known in advance: [samples, groups, 1] at a single output."""

    def __init__(self, errors: np.ndarray[Any, Any], cost: float = 10.0) -> None:
        self._errors, self.cost, self.size, self.rounds = errors, cost, errors.shape[1], list[int]()

    def run(self, feeds: list[Feeds], advance: Any) -> None:
        self.rounds.append(len(feeds))
        advance(len(feeds) * self.size)

    def found(self) -> StudyErrors:
        count = sum(self.rounds)
        return StudyErrors(("a",) * self.size, {"int8": self._errors[:count]}, np.ones((count, 1)), {})


def chances(apart_db: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    scale = 10 ** (-apart_db * np.arange(20) / 20)
    return np.asarray((rng.standard_normal((64, 20)) * scale)[:, :, None] ** 2)


FEEDS: list[Feeds] = [{} for _ in range(32)]
POOL = Pool([], FEEDS, 64)


def test_few_samples_do_where_they_agree_and_more_are_run_where_they_do_not() -> None:
    with silent.stage("study") as stage:
        clear = Told(chances(10.0))
        _, sampled = on_few(clear, POOL, 10**6, stage)  # type: ignore[arg-type]
        assert (sampled.samples, sampled.total, sampled.exact, clear.rounds) == (
            first_of(20),
            64,
            False,
            [first_of(20)],
        )
        assert sampled.runs == first_of(20) * clear.cost
        unclear = Told(chances(0.2))
        _, sampled = on_few(unclear, POOL, 10**6, stage)  # type: ignore[arg-type]
        assert sampled.samples == len(FEEDS)
        assert all(
            later <= earlier for earlier, later in zip(unclear.rounds[2:], unclear.rounds[1:], strict=False)
        ) or (sum(unclear.rounds) == len(FEEDS))


def test_the_budget_ends_it_and_the_first_samples_are_run_whatever_it_is() -> None:
    with silent.stage("study") as stage:
        _, sampled = on_few(Told(chances(0.2)), POOL, 100, stage)  # type: ignore[arg-type]
        assert sampled.samples == 10
        _, sampled = on_few(Told(chances(0.2)), POOL, 1, stage)  # type: ignore[arg-type]
        assert sampled.samples == FIRST
        _, sampled = on_few(Told(chances(0.2)), Pool([], FEEDS[:2], 2), 1, stage)  # type: ignore[arg-type]
        assert sampled.samples == sampled.total == 2


def test_all_of_them_are_run_on_request_a_few_at_a_time() -> None:
    with silent.stage("study") as stage:
        study = Told(chances(10.0))
        _, sampled = on_all(study, iter(FEEDS), 32, stage)  # type: ignore[arg-type]
    assert (sampled.exact, sampled.samples, sampled.total) == (True, 32, 32)
    assert max(study.rounds) < 32


def test_a_pool_has_the_loudest_samples_and_a_choice_of_the_others_whatever_their_order() -> None:
    feeds = feeds_of(4)
    pool, turned = Pool.of(feeds), Pool.of(feeds[::-1])
    peaks = sorted((float(np.abs(feed["x"]).max()) for feed in feeds), reverse=True)
    assert sorted((float(np.abs(feed["x"]).max()) for feed in pool.loud), reverse=True) == peaks[:LOUD]
    assert pool.total == SAMPLES
    assert not {id(feed) for feed in pool.loud} & {id(feed) for feed in pool.others}
    for one, other in zip((*pool.loud, *pool.others), (*turned.loud, *turned.others), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    assert not Pool.of([{"ids": np.array([[at]])} for at in range(9)]).loud


def convolutions() -> onnx.ModelProto:
    """A small classifier with a shortcut: convolutions of many widths, then two logits."""
    rng = np.random.default_rng(5)
    weights: dict[str, Any] = {"head": rng.standard_normal((64, 2)).astype(np.float32)}
    nodes: list[Any] = []
    before, channels = "x", 16
    for at, width in enumerate((16, 32, 32, 48, 64, 64, 32, 32, 48, 64)):
        loud = np.exp(rng.uniform(-3, 3, (width, 1, 1, 1)))
        made = rng.standard_normal((width, channels, 3, 3)) * loud / np.sqrt(9 * channels)
        weights[f"w{at}"] = made.astype(np.float32)
        nodes += [
            ("Conv", f"{before} w{at}", f"c{at}", {"pads": [1, 1, 1, 1]}),
            ("Relu", f"c{at}", f"r{at}"),
        ]
        before, channels = f"r{at}", width
        if at in (2, 5, 7):
            nodes.append(("Add", f"r{at} c{at - 1}", f"a{at}"))
            before = f"a{at}"
    nodes += [
        ("GlobalAveragePool", before, "p"),
        ("Flatten", "p", "f"),
        ("MatMul", "f head", "y"),
    ]
    return model(*nodes, inputs={"x": ("n", 16, 6, 6)}, weights=weights)


def encoder() -> onnx.ModelProto:
    """Products with norms and a residual stream, outputs at every position."""
    rng = np.random.default_rng(6)
    weights: dict[str, Any] = {}
    nodes: list[Any] = []
    before = "x"
    for at in range(5):
        spread = np.exp(rng.uniform(-1.5, 1.5, (32, 1)))
        weights[f"a{at}"] = (rng.standard_normal((32, 64)) * spread / 8).astype(np.float32)
        weights[f"b{at}"] = (rng.standard_normal((64, 32)) / 8).astype(np.float32)
        nodes += [
            ("MatMul", f"{before} a{at}", f"h{at}"),
            ("Tanh", f"h{at}", f"t{at}"),
            ("MatMul", f"t{at} b{at}", f"o{at}"),
            ("Add", f"o{at} {before}", f"s{at}"),
        ]
        before = f"s{at}"
    return model(*nodes, inputs={"x": ("n", 12, 32)}, outputs=(before,), weights=weights)


def feeds_of(*shape: int) -> list[Feeds]:
    rng = np.random.default_rng(9)
    return [
        {"x": (rng.standard_normal((1, *shape)) * np.exp(rng.normal(0, 0.5))).astype(np.float32)}
        for _ in range(SAMPLES)
    ]


def correlation(one: Sensitivity, other: Sensitivity, name: str) -> float:
    found = [{group.activation: group.effects[name].outputs_db for group in result.groups} for result in (one, other)]
    assert found[0].keys() == found[1].keys()
    first, second = (np.array([row[key] for key in sorted(row)]) for row in found)
    return rank_correlation(first, second)


@pytest.mark.parametrize("kind", ["convolutions", "encoder", "glu"])
def test_an_estimate_ranks_layers_as_the_exact_study_does(kind: str, tmp_path: Path) -> None:
    if kind == "glu":
        path, feeds = saved(tmp_path, glu.stack(channels=glu.OUTLIERS, layers=3)), glu.feeds(SAMPLES)
    else:
        proto = convolutions() if kind == "convolutions" else encoder()
        path, feeds = saved(tmp_path, proto), feeds_of(*((16, 6, 6) if kind == "convolutions" else (12, 32)))
    recipe = Recipe(keep=("^Y$",))
    estimate = sensitivity(path, data=feeds, recipe=recipe, formats="int8")
    exact = sensitivity(path, data=feeds, recipe=recipe, formats="int8", exact=True)
    assert exact.sampled.samples == exact.sampled.total == SAMPLES
    assert estimate.sampled.samples < SAMPLES
    assert estimate.sampled.runs < exact.sampled.runs
    assert correlation(estimate, exact, "int8") >= 0.95
    told = estimate.correlation["int8"]
    assert told is not None
    assert told >= 0.95
    known = {group.activation: group.effects["int8"].outputs_db for group in exact.groups}
    within = 0
    for group in estimate.groups:
        effect = group.effects["int8"]
        assert effect.error_db is not None
        within += abs(effect.outputs_db - known[group.activation]) <= 3 * effect.error_db + 0.1
    assert within >= 0.8 * len(estimate.groups)  # of few samples the error is itself an estimate


def test_an_exact_study_has_no_doubts(tmp_path: Path) -> None:
    feeds = feeds_of(12, 32)
    exact = sensitivity(saved(tmp_path, encoder()), data=feeds, exact=True)
    assert exact.correlation == {"int8": 1.0, "fp8": 1.0}
    assert all(group.order_certain for group in exact.groups)
    assert {effect.error_db for group in exact.groups for effect in group.effects.values()} == {0.0}
    again = sensitivity(saved(tmp_path, encoder()), data=feeds[::-1], exact=True)
    for one, other in zip(exact.groups, again.groups, strict=True):
        assert one.effects["int8"].outputs_db == pytest.approx(other.effects["int8"].outputs_db, abs=1e-6)
