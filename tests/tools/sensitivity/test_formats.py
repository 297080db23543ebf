"""Number formats of the layer study: each rounds to its own grid, and says whether an engine can have it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qcompiler.errors import ModelError, UsageError
from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import parse_target
from qcompiler.tools.sensitivity.formats import FORMATS, parse

RNG = np.random.default_rng(5)
W = RNG.standard_normal((48, 160)).astype(np.float32)
NAMES = tuple(FORMATS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_rounding_a_weight_twice_changes_nothing_more(name: str, axis: int | None) -> None:
    once = FORMATS[name].weights(W, axis)
    assert once.shape == W.shape
    assert once.dtype == np.float32
    assert not np.array_equal(once, W)
    np.testing.assert_allclose(FORMATS[name].weights(once, axis), once, rtol=1e-5)


@pytest.mark.parametrize("name", ["int8", "fp8", "e5m2"])
def test_each_channel_has_a_scale_of_its_own(name: str) -> None:
    factors = np.logspace(-3, 3, 48, dtype=np.float32)[:, None]
    together, alone = FORMATS[name].weights(W * factors, 0), FORMATS[name].weights(W, 0) * factors
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("name", "levels"), [("nf4", 16), ("fp4", 15)])
def test_four_bits_have_so_many_levels_in_a_block(name: str, levels: int) -> None:
    one = FORMATS[name]
    block = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(-1, one.block).T.copy()  # each column a block of its own
    block[0], block[1] = 1, -1
    rounded = one.weights(np.linspace(-1, 1, one.block, dtype=np.float32)[None], 0)
    assert len(np.unique(rounded)) <= levels
    assert len(np.unique(one.weights(block.T.copy(), 0))) == levels


@pytest.mark.parametrize(("depth", "most", "size"), [(256, 128, 128), (128, 128, 64), (96, 64, 32), (160, 32, 32)])
def test_int4_has_the_blocks_of_stored_weights(depth: int, most: int, size: int) -> None:
    w = RNG.standard_normal((depth, 24)).astype(np.float32)
    for half in (True, False):
        (one,) = parse("int4", most, half=half)
        wanted = blocks.dequantize(blocks.round_to_nearest(w, size, "int4", half=half))
        np.testing.assert_array_equal(one.weights(w, 1), wanted)
        np.testing.assert_array_equal(one.weights(w.T.copy(), 0), wanted.T)


def test_int4_of_a_depth_that_no_block_divides_ends_with_a_short_block() -> None:
    w = RNG.standard_normal((40, 24)).astype(np.float32)
    wanted = blocks.dequantize(blocks.round_to_nearest(w, 32, "int4"))
    np.testing.assert_array_equal(FORMATS["int4"].weights(w, 1), wanted)


def test_four_bit_formats_err_as_their_grids_say() -> None:
    w = RNG.standard_normal((128, 512)).astype(np.float32)
    figures = {name: sqnr_of(w, FORMATS[name].weights(w, 0) - w) for name in ("int4", "nf4", "fp4")}
    assert 17 < figures["int4"] < figures["nf4"] < 22  # of a bell curve, NF4 has the quantiles
    assert figures["fp4"] > figures["int4"]  # for its small blocks


@pytest.mark.parametrize("name", ["int4", "nf4", "fp4"])
def test_a_large_weight_coarsens_its_own_block_only(name: str) -> None:
    one = FORMATS[name]
    rough = W.copy()
    rough[3, 0] = 50
    first, second = one.weights(W, 0), one.weights(rough, 0)
    if name == "fp4":  # its scales are rounded under one for the whole tensor
        errors = [float(np.square(found[3, 16:] - W[3, 16:]).sum()) for found in (first, second)]
        assert errors[1] < 1.5 * errors[0]
    else:
        np.testing.assert_array_equal(second[3, one.block :], first[3, one.block :])
    assert np.abs(second[3, 1 : one.block]).sum() < np.abs(first[3, 1 : one.block]).sum()


def test_blocks_run_along_the_depth_whichever_axis_it_is() -> None:
    for name in NAMES:
        np.testing.assert_array_equal(FORMATS[name].weights(W.T.copy(), 1), FORMATS[name].weights(W, 0).T)


def test_a_convolution_keeps_its_shape() -> None:
    kernel = RNG.standard_normal((8, 5, 3, 3)).astype(np.float32)
    for name in NAMES:
        rounded = FORMATS[name].weights(kernel, 0)
        flat = FORMATS[name].weights(kernel.reshape(8, -1), 0)
        np.testing.assert_array_equal(rounded.reshape(8, -1), flat)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    assert not FORMATS[name].weights(np.zeros((4, 70), np.float32), 0).any()


def test_e5m2_is_what_its_type_holds() -> None:
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float32)
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(FORMATS["e5m2"].values(values, 57344.0), values)
    np.testing.assert_array_equal(FORMATS["e5m2"].values(np.array([1e9, -1e9]), 57344.0), [57344, -57344])


def test_bell_curves_suit_int8_and_heavy_tails_the_floats() -> None:
    bell = RNG.standard_normal(40_000).astype(np.float32)
    heavy = bell.copy()
    heavy[:40] *= 1e5
    figures = {}
    for name in ("int8", "fp8", "e5m2"):
        for kind, x in (("bell", bell), ("heavy", heavy)):
            rounded = FORMATS[name].values(x, float(np.abs(x).max()))
            figures[name, kind] = sqnr_of(x[40:], rounded[40:] - x[40:])
    assert figures["int8", "bell"] > figures["fp8", "bell"] + 5 > figures["e5m2", "bell"] + 10
    assert figures["e5m2", "heavy"] > figures["fp8", "heavy"] + 5 > figures["int8", "heavy"] + 5


def test_ranges_of_activations_fit_their_grid() -> None:
    x = RNG.standard_normal(100_000).astype(np.float32)
    x[0] = 20
    histogram = Histogram.of(x)
    assert FORMATS["int8"].range(histogram) < 15
    assert FORMATS["fp8"].range(histogram) > 15
    assert FORMATS["e5m2"].range(histogram) == 20


def test_formats_are_read_once_each_in_order() -> None:
    assert [one.name for one in parse("fp8, int8,fp8")] == ["fp8", "int8"]
    assert [one.name for one in parse(["nf4"])] == ["nf4"]


@pytest.mark.parametrize(("text", "says"), [("e5m3", "did you mean 'e5m2'?"), ("", "there is no format ''")])
def test_an_unknown_format_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_no_format_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="name some of int8, fp8"):
        parse([])


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("int8", "tensorrt-rtx:sm80", ""),
        ("fp8", "tensorrt-rtx", ""),
        ("fp8", "tensorrt-rtx:sm89,sm120", ""),
        ("fp8", "tensorrt-rtx:sm80,sm89", "sm80 has no FP8"),
        ("fp8", "onnxruntime", "no FP8 kernels"),
        ("e5m2", "tensorrt-rtx", "TensorRT has no E5M2 type"),
        ("int4", "tensorrt-rtx", "precision int4-weight"),
        ("nf4", "tensorrt-rtx", "weights only"),
        ("fp4", "tensorrt-rtx:sm120", "weights only"),
    ],
)
def test_whether_an_engine_can_have_it(name: str, target: str, says: str) -> None:
    why = FORMATS[name].why_not(parse_target(target))
    assert says in why
    assert bool(why) == bool(says)


def test_a_weight_that_is_not_finite_is_refused_by_the_quantizers() -> None:
    with pytest.raises(ModelError):
        FORMATS["int8"].weights(np.array([[np.nan, 1]], np.float32), 0)
