"""What dividing channels promises, against what it does to layers that are really rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.graph import is_linear
from qcompiler.numerics.rounding import Format, dequantize, quantize, quantize_weight
from qcompiler.outliers.predicted import E4M3_ERROR, Read, gain_db, read
from qcompiler.outliers.smooth_quant.alpha import smooth_scales
from qcompiler.plan import Candidate
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.outliers import Outliers
from tests.kit.rewrite import model, to_graph

CHANNELS, OUTPUTS = 48, 40


def rows(outliers: int, seed: int = 0) -> Any:
    x = np.random.default_rng([1, seed]).standard_normal((2000, CHANNELS)).astype(np.float32)
    x[:, :outliers] *= 60
    return x


def weight(seed: int = 0) -> Any:
    return np.random.default_rng([2, seed]).standard_normal((CHANNELS, OUTPUTS)).astype(np.float32)


def known(x: Any, w: Any, *, format: Format = "int8", per_channel: bool = True) -> Read:
    graph = to_graph(model(("MatMul", "x w", "y"), inputs={"x": ("n", CHANNELS)}, weights={"w": w}))
    (node,) = (one for one in graph.nodes if is_linear(one))
    candidate = Candidate(node.name, node.op, "x", "w", 1)
    seen = Outliers()
    seen.update(x[:, None, :])
    found = read(graph, {"x": [candidate]}, {"x": Histogram.of(x)}, {"x": seen}, per_channel=per_channel, format=format)
    return found["x"]


def real(x: Any, w: Any, amax: float, scales: Any) -> float:
    """NSR of the product, rounded."""
    grid = dequantize(quantize(x / scales, amax / 127, None, "int8"), amax / 127)
    values, steps = quantize_weight(w * scales[:, None], 1, "int8")
    gap = grid @ dequantize(values, steps, 1) - x @ w
    return float((gap**2).sum() / ((x @ w) ** 2).sum())


@pytest.mark.parametrize("outliers", [0, 2])
def test_the_error_as_it_is_and_divided_is_near_the_real_one(outliers: int) -> None:
    x, w = rows(outliers), weight()
    one = known(x, w)
    ones = np.ones(CHANNELS, np.float32)
    assert gain_db([one.noise()], [real(x, w, one.range, ones)]) == pytest.approx(0, abs=1.0)
    scales = smooth_scales(one.channels, np.abs(w).max(axis=1), 0.5)
    after = real(x, w, float((one.channels / scales).max()), scales)
    assert gain_db([one.divided(scales.astype(np.float64))], [after]) == pytest.approx(0, abs=2.0)


def test_nothing_is_promised_where_no_channel_stands_out() -> None:
    w = weight()
    one = known(rows(0), w)
    largest = np.abs(w).max(axis=1)
    best = min(one.divided(smooth_scales(one.channels, largest, a).astype(np.float64)) for a in (0.3, 0.5, 0.85, 1.0))
    assert gain_db([one.noise()], [best]) < 2.0


def test_much_is_promised_where_some_do() -> None:
    x, w = rows(2), weight()
    w[:2] /= 60  # what they feed matters no more than the others
    one = known(x, w)
    best = min(
        one.divided(smooth_scales(one.channels, np.abs(w).max(axis=1), a).astype(np.float64)) for a in (0.5, 0.85)
    )
    assert gain_db([one.noise()], [best]) > 15


def test_fp8_promises_little_because_its_steps_follow_the_values() -> None:
    x, w = rows(2), weight()
    w[:2] /= 60
    one = known(x, w, format="fp8")
    after = one.divided(smooth_scales(one.channels, np.abs(w).max(axis=1), 0.5).astype(np.float64))
    assert gain_db([one.noise()], [after]) < 6
    assert pytest.approx(10 * np.log10(1 / E4M3_ERROR), abs=0.1) == 31.5


def test_a_scale_for_the_whole_weight_errs_more() -> None:
    w = weight()
    w[:, 0] *= 50
    assert known(rows(0), w, per_channel=False).noise() > known(rows(0), w).noise()


def test_convolutions_count_taps_and_groups() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((8, 6, 12, 12)).astype(np.float32)
    graph = to_graph(
        model(
            ("Conv", "x w", "y", {"group": 2}),
            inputs={"x": (8, 6, 12, 12)},
            weights={"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)},
        )
    )
    seen = Outliers(1)
    seen.update(x)
    groups = {"x": [Candidate("Y", "Conv", "x", "w", 0)]}
    (one,) = read(graph, groups, {"x": Histogram.of(x)}, {"x": seen}, per_channel=True, format="int8").values()
    assert one.layers[0].peaks.shape == (2, 2, 3)
    assert one.layers[0].taps == 9
    assert 30 < -10 * np.log10(one.noise()) < 45


def test_what_cannot_be_laid_out_is_left_out() -> None:
    x = rows(0)
    graph = to_graph(
        model(
            ("MatMul", "x w", "y"), inputs={"x": ("n", CHANNELS)}, weights={"w": np.zeros((2, CHANNELS, 3), np.float32)}
        )
    )
    seen = Outliers()
    seen.update(x[:, None, :])
    groups = {"x": [Candidate("Y", "MatMul", "x", "w", 2)]}
    assert read(graph, groups, {"x": Histogram.of(x)}, {"x": seen}, per_channel=True, format="int8") == {}


def test_gains_are_those_of_sums() -> None:
    assert gain_db([1.0, 9.0], [1.0, 0.0]) == pytest.approx(10.0)
    assert gain_db([], []) == 0.0
