"""The histogram: any order, chunking and kernel give one state, and its views agree with the numbers themselves."""

from __future__ import annotations

import json
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qcompiler.calibrators.error_curve import quantization_error
from qcompiler.runtime.stream import Part
from qcompiler.statistics.histogram import Histogram, Histograms, signal_power

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 60), elements=ANY_FLOAT)


def heavy(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def test_what_differs_in_anything_has_another_digest() -> None:
    arrays = [[1.0], [1.0, 1.0], [-1.0], [1.001], [1.0, 0.0], [1.0, np.nan], [2.0], [1.0, 2.0]]
    digests = {Histogram.of(np.array(one, np.float32)).digest() for one in arrays}
    assert len(digests) == len(arrays)


@settings(deadline=None)
@given(ARRAYS, st.data())
def test_merging_parts_in_any_order_equals_the_whole(array: NDArray[np.float32], data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(array.size))), np.intp)
    cuts = sorted(data.draw(st.lists(st.integers(0, array.size), max_size=4)))
    parts = [Histogram.of(part) for part in np.split(array[order], cuts)]
    merged = Histogram()
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    assert merged == Histogram.of(array)
    assert repr(merged) == repr(Histogram.of(array))
    assert merged.digest() == Histogram.of(array).digest()


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, st.integers(0, 200), elements=ANY_FLOAT))
def test_the_compiled_and_the_numpy_kernel_are_equal_to_the_bit(array: NDArray[np.float32]) -> None:
    compiled, plain = Histogram(), Histogram()
    compiled.update(array, compiled=True)
    plain.update(array, compiled=False)
    assert compiled == plain


def test_kernels_agree_on_an_array_of_several_chunks() -> None:
    array = heavy(400_001)
    array[::3] = 0
    compiled, plain = Histogram(), Histogram()
    compiled.update(array, compiled=True)
    plain.update(array, compiled=False)
    assert compiled == plain
    assert compiled.counts().sum() + compiled.zeros == array.size


@settings(deadline=None)
@given(ARRAYS)
def test_exact_fields(array: NDArray[np.float32]) -> None:
    histogram = Histogram.of(array)
    finite = array[np.isfinite(array)]
    assert histogram.count == array.size
    assert histogram.nonfinite == array.size - finite.size
    assert histogram.zeros == np.count_nonzero(np.abs(finite.astype(np.float64)) < 2.0**-134)
    assert histogram.amax == (float(np.abs(finite).max()) if finite.size else 0.0)
    assert histogram.minimum == (float(finite.min()) if finite.size else 0.0)
    assert histogram.maximum == (float(finite.max()) if finite.size else 0.0)


@settings(deadline=None)
@given(ARRAYS)
def test_dictionary_round_trip_through_json(array: NDArray[np.float32]) -> None:
    histogram = Histogram.of(array)
    back = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert back == histogram
    back.update(array)  # what was read back is writable
    assert back.count == 2 * array.size


def test_other_histograms_and_other_things_are_not_equal() -> None:
    assert Histogram.of(heavy(100)) != Histogram.of(heavy(100, seed=1))
    assert Histogram.of(heavy(100)) != "a histogram"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_count_as_their_float32_values(dtype: Any) -> None:
    array = heavy(5000).astype(dtype)
    assert Histogram.of(array) == Histogram.of(array.astype(np.float32))


def test_float64_beyond_float32_is_nonfinite() -> None:
    histogram = Histogram.of(np.array([1e300, 1.0]))
    assert (histogram.nonfinite, histogram.amax) == (1, 1.0)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        Histogram.of(np.arange(3))


def test_strided_read_only_and_unaligned_arrays_are_taken() -> None:
    array = heavy(9000)
    whole = Histogram.of(array)
    assert Histogram.of(array.reshape(90, 100).T) == whole
    frozen = array.copy()
    frozen.flags.writeable = False
    assert Histogram.of(frozen) == whole
    shifted = np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1)
    assert Histogram.of(shifted) == whole


def test_threads_do_not_share_scratch_tables() -> None:
    arrays = [heavy(300_000, seed) for seed in range(4)]
    found = [Histogram() for _ in arrays]
    threads = [threading.Thread(target=h.update, args=(a,)) for h, a in zip(found, arrays, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Histogram.of(array) for array in arrays]


def test_an_interrupted_update_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Histogram, chunk: NDArray[np.float32]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Histogram, "_extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Histogram.of(heavy(5000))
    histogram = Histogram.of(heavy(100, seed=1))
    assert histogram.counts().sum() + histogram.zeros == 100


def test_memory_follows_the_octaves_in_use() -> None:
    assert Histogram.of(np.array([1.0, 1.5], np.float32)).nbytes == 2048
    assert Histogram.of(heavy(1_000_000)).nbytes < 100_000


def test_uniform_bins_hold_every_finite_element() -> None:
    array = heavy(50_000)
    histogram = Histogram.of(array)
    for amax in (histogram.amax, histogram.amax / 7, histogram.amax * 2):
        bins = histogram.uniform_bins(2048, amax)
        assert bins.shape == (2048,)
        assert bins.min() >= 0
        assert bins.sum() == pytest.approx(array.size, rel=1e-12)


def test_uniform_bins_agree_with_numpys_histogram_but_for_the_width_of_a_bucket() -> None:
    array = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    histogram = Histogram.of(array)
    ours = histogram.uniform_bins(64, histogram.amax)
    exact, edges = np.histogram(np.abs(array), bins=64, range=(0, histogram.amax))
    at_most = np.abs(np.cumsum(ours) - np.cumsum(exact)).max()
    within_a_bucket = np.histogram(np.abs(array), bins=edges.size * 8)[0].max()
    assert at_most < within_a_bucket


def test_what_lies_above_the_range_goes_into_the_last_bin_and_zeros_into_the_first() -> None:
    histogram = Histogram.of(np.array([0, 0, 0, 1, 8, 9], np.float32))
    bins = histogram.uniform_bins(4, 4.0)
    assert bins.tolist() == [3, 1, 0, 2]


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(2**-10, 1024, width=32)), st.data())
def test_quantiles_lie_within_a_bucket_of_the_exact_ones(array: NDArray[np.float32], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, array.size - 1))
    found = Histogram.of(array).quantile(100 * (rank + 0.5) / array.size)
    assert found == pytest.approx(float(np.sort(array)[rank]), rel=1 / 128)


def test_the_hundredth_percentile_is_exact() -> None:
    array = heavy(1000)
    assert Histogram.of(array).quantile(100) == float(np.abs(array).max())


def test_quantiles_below_the_share_of_zeros_are_zero() -> None:
    assert Histogram.of(np.array([0, 0, 0, 5], np.float32)).quantile(50) == 0.0


def test_an_empty_histogram_has_defined_views() -> None:
    histogram = Histogram()
    assert (histogram.amax, histogram.amin, histogram.quantile(50), histogram.nbytes) == (0.0, 0.0, 0.0, 0)
    assert histogram.uniform_bins(4, 1.0).tolist() == [0, 0, 0, 0]
    assert histogram.centers().size == histogram.widths().size == histogram.counts().size == 0


def test_bucket_edges_bracket_the_values() -> None:
    histogram = Histogram.of(np.array([1.001, 3.0], np.float32))
    lower, upper = histogram.bounds()
    assert lower.tolist() == [1.0, 3.0]
    assert upper.tolist() == [1 + 1 / 256, 3.0]
    assert histogram.amin == 1.0
    assert histogram.centers().tolist() == [1 + 1 / 512, 3.0]
    assert histogram.widths().tolist() == [1 / 256, 0.0]


def test_the_expected_signal_power_is_the_measured_one() -> None:
    x = np.random.default_rng(5).normal(size=100_000).astype(np.float32)
    assert signal_power(Histogram.of(x)) == pytest.approx(float(np.mean(x.astype(np.float64) ** 2)), rel=1e-4)
    assert signal_power(Histogram()) == quantization_error(Histogram(), 1.0, "int8") == 0.0


def test_padding_does_not_count() -> None:
    x = np.ones((2, 3, 4), np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    x[mask == 0] = 93
    seen = Histograms(["x"])
    seen.update(Part(0, {"attention_mask": mask}, {"x": x}, last=True))
    assert (seen.found["x"].amax, seen.found["x"].count) == (1.0, 12)
    seen.update(Part(1, {"attention_mask": np.ones_like(mask)}, {"x": x}, last=True))
    assert seen.found["x"].amax == 93


def test_octaves_count_what_lies_between_powers_of_two() -> None:
    found = Histogram.of(np.array([0.0, 0.0, 1.0, -1.5, 1.999, 2.0, -7.5, 0.3], np.float32)).octaves()
    assert (found["first"], found["counts"]) == (-2, [1, 0, 3, 1, 1])
    assert (found["zeros"], found["below"], found["elements"]) == (2, 0, 8)
    assert (found["minimum"], found["maximum"]) == (-7.5, 2.0)


def test_octaves_are_the_largest_ones() -> None:
    values = 2.0 ** np.arange(-10, 3).astype(np.float32)
    found = Histogram.of(values).octaves(3)
    assert (found["first"], found["counts"], found["below"]) == (0, [1, 1, 1], 10)
    assert Histogram().octaves()["counts"] == []
