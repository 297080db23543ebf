"""What rounding to half does to the outputs, and who is to blame for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.views import Role, View
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.planning.search import half_noise
from qcompiler.planning.search.half_noise import HalfNoise, find, goal_of
from qcompiler.planning.simulation.half import HalfSimulator
from qcompiler.runtime.session import Session
from qcompiler.statistics import ranges
from qcompiler.target import DType
from qcompiler.verification import emulation
from tests.kit.rewrite import Spec, model, to_graph
from tests.kit.typed import weight

RNG = np.random.default_rng(5)
_BODY: tuple[Spec, ...] = (("MatMul", "h w1", "u"), ("Gelu", "u", "g"), ("MatMul", "g w2", "y"))
_WEIGHTS = {"w1": weight(32, 64), "w2": weight(64, 16)}
F = np.float32

# In front of two layers: what half rounds so that its outputs suffer
KINDS: dict[str, tuple[tuple[Spec, ...], dict[str, Any], float]] = {
    "logarithm of powers": (
        (
            ("MatMul", "x spread", "s"),
            ("Mul", "s s", "p"),
            ("Add", "p tiny", "q"),
            ("Log", "q", "l"),
            ("Mul", "l k", "h"),
        ),
        {"spread": weight(32, 32) * np.logspace(-3, 0, 32, dtype=F), "tiny": F(1e-3), "k": F(0.2)},
        1.0,
    ),
    "sums that cancel": (
        (("Add", "x large", "a"), ("Mul", "a k", "b"), ("Sub", "b shift", "h")),
        {"large": F(900), "k": F(1.5), "shift": F(1350)},
        1.0,
    ),
    "norm of a large mean": (
        (("Add", "x large", "a"), ("LayerNormalization", "a one zero", "h", {"axis": -1})),
        {"large": F(500), "one": np.ones(32, F), "zero": np.zeros(32, F)},
        0.3,
    ),
    "angles": ((("Mul", "x k", "a"), ("Sin", "a", "h")), {"k": F(40)}, 3.0),
    "powers of what is quiet": (
        (
            ("Mul", "x rows", "r"),
            ("MatMul", "r basis", "s"),
            ("Mul", "s s", "p"),
            ("MatMul", "p mel", "m"),
            ("Clip", "m tiny", "c"),
            ("Log", "c", "h"),
        ),
        {
            "basis": weight(32, 32),
            "mel": np.abs(weight(32, 32)),
            "tiny": F(1e-10),
            "rows": np.logspace(-3, 0, 4, dtype=F)[:, None],
        },
        1.0,
    ),
    "exponentials": ((("Mul", "x k", "a"), ("Exp", "a", "h")), {"k": F(2)}, 1.0),
}


def loaded(front: tuple[Spec, ...], weights: dict[str, Any]) -> models.Model:
    proto = model(*front, *_BODY, inputs={"x": ("n", 32)}, weights={**weights, **_WEIGHTS}, opset=20)
    return models.Model(to_graph(proto), {}, None, 10)


def feeds(scale: float = 1.0, count: int = 10) -> list[Feeds]:
    rng = np.random.default_rng(2)
    return [{"x": (rng.standard_normal((4, 32)) * scale).astype(np.float32)} for _ in range(count)]


def typing(model_: models.Model, samples: list[Feeds]) -> HighPrecision:
    return HighPrecision(DType.FP16, ranges.measure(model_, samples))


def result_db(model_: models.Model, typing_: HighPrecision, samples: list[Feeds]) -> float:
    """What the typed graph itself leaves, on these samples."""
    typed = models.copy(model_)
    typing_(typed.graph)
    half = Session(emulation.runnable(typed, half=True), optimize=False)
    whole = Session(model_)
    expected = np.stack([whole.run(feed)["y"] for feed in samples])
    return sqnr_of(expected, np.stack([half.run(feed)["y"] for feed in samples]) - expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_nodes_that_ruin_the_outputs_go_back_to_fp32(kind: str) -> None:
    front, weights, scale = KINDS[kind]
    model_, samples = loaded(front, weights), feeds(scale)
    before = typing(model_, samples)
    found = find(HalfSimulator(model_, before), samples, 54.0)
    after = HighPrecision(DType.FP16, before.ranges, noisy=found.noisy)
    unseen = feeds(scale, 20)[10:]
    assert found.sqnr_db >= 54
    assert result_db(model_, after, unseen) > 50
    assert {"Y", "G"}.isdisjoint(found.noisy)
    if found.fits_db < 54:
        assert found.noisy
        assert result_db(model_, before, unseen) < 54
        typed = models.copy(model_)
        report = after(typed.graph)
        blamed = [one for one in report.decisions if one.rule == "fp16-noise"]
        assert {one.node for one in blamed} == set(found.noisy)
        assert all(one.figures["sqnr_db"] == found.noisy[one.node] for one in blamed)
        assert all(f"{found.noisy[one.node]:.1f} dB" in one.why for one in blamed)


def test_some_of_these_kinds_need_it() -> None:
    found = {}
    for kind, (front, weights, scale) in KINDS.items():
        model_, samples = loaded(front, weights), feeds(scale)
        found[kind] = find(HalfSimulator(model_, typing(model_, samples)), samples, 54.0).fits_db
    assert sum(db < 45 for db in found.values()) >= 2, found


def test_where_the_goal_is_met_one_try_is_enough() -> None:
    model_ = loaded((("Relu", "x", "h"),), {})
    samples = feeds()
    found = find(HalfSimulator(model_, typing(model_, samples)), samples, 50.0)
    assert (found.tries, found.noisy, found.samples) == (1, {}, half_noise.FEW)  # which leave no doubt
    close = find(HalfSimulator(model_, typing(model_, samples)), samples, found.sqnr_db - 0.01)
    assert close.samples == half_noise.SAMPLES  # where few leave one
    assert found.met
    assert found.sqnr_db == found.fits_db > 50


def test_noise_that_is_spread_evenly_stays() -> None:
    layers = [("MatMul", f"t{i} w", f"t{i + 1}") for i in range(24)]
    q, _ = np.linalg.qr(RNG.standard_normal((32, 32)))
    proto = model(*layers, inputs={"t0": ("n", 32)}, outputs=("t24",), weights={"w": q.astype(np.float32)})
    model_ = models.Model(to_graph(proto), {}, None, 10)
    samples = [{"t0": feed["x"]} for feed in feeds()]
    found = find(HalfSimulator(model_, typing(model_, samples)), samples, 65.0)
    assert found.fits_db < 65
    assert (found.noisy, found.sqnr_db) == ({}, found.fits_db)
    assert not found.met


class _Loud:
    """Many nodes, each with a noise of its own; no model at all."""

    views = (View("y", "y", "y", Role.OUTPUT),)

    def __init__(self, noise: np.ndarray[Any, Any]) -> None:
        self.noise = dict(zip((f"n{i}" for i in range(len(noise))), noise, strict=True))
        self.units = tuple(self.noise)
        self.runs = 0

    def run(self, feeds: Feeds, low: Any) -> Feeds:
        self.runs += 1
        x = np.asarray(feeds["x"], np.float64)
        error = math.sqrt(sum(self.noise[name] for name in low) * float(np.mean(x**2)))
        return {"y": x + error}


@pytest.mark.parametrize("count", [50, 5000])
def test_tries_are_bounded_whatever_the_model_is(count: int) -> None:
    noise = np.full(count, 1e-9 / count)
    noise[[count // 3, count // 2, count - 1]] = 1e-4, 3e-4, 1e-5
    simulator: Any = _Loud(noise)
    found = find(simulator, feeds(), 54.0)
    assert found.tries <= half_noise.TRIES + 2
    assert simulator.runs <= 2 * half_noise.SAMPLES + half_noise.FEW * (half_noise.TRIES + 1) + half_noise.SAMPLES
    assert {f"n{count // 3}", f"n{count // 2}"} <= set(found.noisy)
    assert found.sqnr_db > 45
    loud = [name for name in found.noisy if simulator.noise[name] > 1e-6]
    assert len(found.noisy) <= 3 * len(loud) * max(1, count // 512)


def test_what_is_not_finite_in_half_is_blamed() -> None:
    simulator: Any = _Loud(np.array([1e-9, 1e-9, np.inf, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]))
    found = find(simulator, feeds(), 54.0)
    assert set(found.noisy) == {"n2"}
    assert found.fits_db == -math.inf
    assert found.met


@pytest.mark.parametrize(
    ("dtype", "reached", "gate", "target", "goal"),
    [
        (DType.FP16, None, None, math.inf, 54.0),
        (DType.BF16, None, None, math.inf, 36.0),
        (DType.FP16, 20.0, None, math.inf, 30.0),
        (DType.FP16, 70.0, None, math.inf, 54.0),
        (DType.FP16, None, 60.0, math.inf, 60.0),
        (DType.FP16, 20.0, 40.0, math.inf, 50.0),
        (DType.FP16, 41.0, None, 25.0, 45.0),  # 10 dB of room above the goal, and 10 more for half to stay below
        (DType.FP16, 20.0, None, 25.0, 30.0),
        (DType.FP16, 70.0, None, 60.0, 54.0),
        (DType.BF16, 41.0, None, 25.0, 36.0),
        (DType.FP16, 41.0, 40.0, 25.0, 50.0),
    ],
)
def test_goals(dtype: DType, reached: float | None, gate: float | None, target: float, goal: float) -> None:
    assert goal_of(dtype, reached, gate, target) == goal


def test_the_record_is_plain() -> None:
    record = HalfNoise(54.0, 30.0, math.inf, {"a": 31.0}, 9, 8).to_json()
    assert record["sqnr_db"] == "inf"
    assert record["noisy"] == {"a": 31.0}
