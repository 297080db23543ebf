"""AWQ: scales and ranges that err less at the outputs than rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.numerics import blocks
from qcompiler.weight_only import awq
from tests.kit.weight_only.correlated import DEPTH, SIZE, crossed, held, inputs, rows, weight


def test_awq_scales_lower_the_error_at_the_outputs() -> None:
    x, w = inputs(), weight()
    found = awq.find_scales(held(x[:100], x), [w], size=SIZE, format="int4")
    plain = blocks.round_to_nearest(w, SIZE, "int4")
    scaled = blocks.round_to_nearest(w * found.scales[:, None], SIZE, "int4")
    exact = x @ w
    before = float(((x @ blocks.dequantize(plain) - exact) ** 2).sum())
    after = float(((x / found.scales @ blocks.dequantize(scaled) - exact) ** 2).sum())
    assert found.ratio is not None
    assert after < before
    assert found.gain_db == pytest.approx(10 * np.log10(before / after), abs=0.05)


def test_awq_keeps_tied_channels_on_one_scale() -> None:
    classes = np.arange(DEPTH) // 2
    found = awq.find_scales(crossed(inputs()), [weight(), weight(2)], size=SIZE, format="int4", classes=classes)
    assert (found.scales[0::2] == found.scales[1::2]).all()


def test_what_judges_is_not_what_the_magnitudes_were_taken_of() -> None:
    x, other = inputs(), inputs()
    other[:, 4:8] *= 40  # channels that are large where it counts, and small where the scales are taken of
    alike = awq.find_scales(held(x, x), [weight()], size=SIZE, format="int4")
    apart = awq.find_scales(held(x, other), [weight()], size=SIZE, format="int4")
    assert apart.gain_db < alike.gain_db


def test_folds_judge_each_other_and_the_scales_are_those_of_all_rows() -> None:
    x = inputs()
    found, whole = (awq.find_scales(one, [weight()], size=SIZE, format="int4") for one in (crossed(x), held(x, x)))
    assert found.gain_db > 0
    if found.ratio == whole.ratio:
        np.testing.assert_array_equal(found.scales, whole.scales)


def test_awq_leaves_alone_what_it_cannot_better() -> None:
    x = np.abs(np.random.default_rng(0).standard_normal((64, DEPTH))).astype(np.float32)
    grid = blocks.dequantize(blocks.round_to_nearest(weight(), SIZE, "int4"))
    found = awq.find_scales(held(x, x), [grid], size=SIZE, format="int4")
    assert found.ratio is None
    assert (found.scales == 1).all()
    assert found.gain_db == 0.0


def test_the_clip_search_never_errs_more_at_the_outputs_of_a_block() -> None:
    x, w = inputs(), weight()
    w[5] *= 20
    plain, clipped = blocks.round_to_nearest(w, SIZE, "int4"), awq.clip(w, rows(x), size=SIZE, format="int4")
    for part in blocks.spans(DEPTH, SIZE):
        errors = [((x[:, part] @ (blocks.dequantize(one) - w)[part]) ** 2).sum(axis=0) for one in (plain, clipped)]
        assert (errors[1] <= errors[0] * (1 + 1e-4)).all()
