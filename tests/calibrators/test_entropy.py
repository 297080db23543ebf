"""The fast divergence equals TensorRT's loop written out, and the choice clips tails without being shaken by noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qcompiler.calibrators.entropy import Entropy, divergence
from qcompiler.calibrators.minmax import MinMax
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram


def written_out(bins: NDArray[np.float64], levels: int) -> list[float]:
    """The procedure of GTC 2017 s7310, bin by bin."""
    bins = bins.copy()
    bins[0] = bins[1]
    found = []
    for kept in range(levels, bins.size + 1):
        p = bins[:kept].copy()
        p[-1] += bins[kept:].sum()
        q = np.zeros(kept)
        group = np.arange(kept) * levels // kept
        for level in range(levels):
            inside = (group == level) & (bins[:kept] > 0)
            if inside.any():
                q[inside] = bins[:kept][inside].sum() / inside.sum()
        p, q = p / p.sum(), q / max(q.sum(), 1e-300)
        some = p > 0
        with np.errstate(divide="ignore"):
            found.append(float(np.sum(p[some] * np.log(p[some] / q[some]))))
    return found


BINS = hnp.arrays(np.float64, st.integers(9, 40), elements=st.sampled_from([0.0, 0.25, 1.0, 3.0, 100.0, 1e6]))


@settings(deadline=None)
@given(BINS, st.integers(2, 8))
def test_divergence_equals_the_procedure_written_out(bins: NDArray[np.float64], levels: int) -> None:
    assume(bins[-1] > 0)
    np.testing.assert_allclose(divergence(bins, levels), written_out(bins, levels), rtol=1e-9, atol=1e-9)


def test_divergence_equals_the_procedure_on_a_real_distribution() -> None:
    h = Histogram.of(np.random.default_rng(0).standard_t(4, 20_000).astype(np.float32))
    bins = h.uniform_bins(512, h.amax)
    np.testing.assert_allclose(divergence(bins, 128), written_out(bins, 128), rtol=1e-9, atol=1e-12)


def test_every_threshold_is_searched() -> None:
    h = Histogram.of(np.random.default_rng(0).standard_t(4, 20_000).astype(np.float32))
    assert divergence(h.uniform_bins(2048, h.amax), 128).size == 2048 - 128 + 1


@pytest.mark.parametrize("seed", range(3))
def test_a_heavy_tail_is_clipped(seed: int) -> None:
    h = Histogram.of(np.random.default_rng(seed).standard_t(3, 200_000).astype(np.float32))
    assert Entropy().range(h) < 0.7 * MinMax().range(h)
    assert Entropy().range(h) > h.quantile(90)


def test_uniform_data_is_hardly_clipped() -> None:
    h = Histogram.of(np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32))
    assert Entropy().range(h) > 0.95 * h.amax


def test_the_zeros_of_a_relu_do_not_change_the_range() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=100_000)).astype(np.float32)
    with_zeros = np.concatenate([x, np.zeros(5_000_000, np.float32)])
    assert Entropy().range(Histogram.of(with_zeros)) == Entropy().range(Histogram.of(x))


def test_among_equal_thresholds_the_largest_wins() -> None:
    h = Histogram.of(np.full(1000, -2.5, np.float32))  # nothing is lost at the only finite threshold
    assert Entropy().range(h) == 2.5
    two = Histogram.of(np.repeat(np.array([1, 2], np.float32), 500))
    assert Entropy().range(two) == 2.0


@pytest.mark.parametrize("degrees", [3, 6])
def test_noise_that_moves_elements_to_the_next_bucket_does_not_move_the_range(degrees: int) -> None:
    rng = np.random.default_rng(degrees)
    unchanged = 0
    for _ in range(20):
        x = rng.standard_t(degrees, 100_000).astype(np.float32)
        noisy = x.copy()
        some = rng.choice(x.size - 1, 1 + x.size // 100_000, replace=False)
        some = some[np.abs(noisy[some]) < np.abs(x).max() * 0.99]
        noisy[some] *= 1 + rng.choice([-1, 1], some.size) / 256
        before, after = Entropy().range(Histogram.of(x)), Entropy().range(Histogram.of(noisy))
        unchanged += after == pytest.approx(before, rel=1e-6)
    assert unchanged >= 19


@pytest.mark.parametrize("options", [{"bins": 128}, {"bins": 64, "levels": 64}, {"levels": 1}])
def test_options_that_leave_nothing_to_search_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="nothing to search"):
        Entropy(**options)
