"""One stored weight with what it costs, and all of them together."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import Format
from qcompiler.weight_only.storable import StorableLayer
from qcompiler.weight_only.stored import StoredWeight
from tests.kit.weight_only.stored import stored


def weight(
    format: Format, size: int | None, output_db: float | None = 30.0, gain_db: float | None = 2.0
) -> StoredWeight:
    values = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    found = blocks.round_to_nearest(values, size, format)
    return StoredWeight(StorableLayer("A", "MatMul", "x", 64, 10, format, size), found, "awq", 20.0, output_db, gain_db)


@pytest.mark.parametrize(
    ("format", "size", "bits", "scales"),
    [("int8", None, 8, 10), ("int4", 32, 4, 20), ("int8", 32, 8, 20)],
)
def test_bytes_are_integers_zero_points_and_scales_in_half(
    format: Format, size: int | None, bits: int, scales: int
) -> None:
    assert weight(format, size).bytes == bits * (640 + scales) // 8 + 2 * scales


def test_an_odd_number_of_four_bits_is_rounded_up_to_a_byte() -> None:
    values = blocks.round_to_nearest(np.ones((3, 2), np.float32), None, "int4")
    one = StoredWeight(StorableLayer("A", "MatMul", "x", 3, 2, "int4", None), values, "rtn", 20.0, None, None)
    assert one.bytes == (4 * 6 + 4 * 2) // 8 + 2 * 2


def test_without_outputs_the_weight_alone_is_what_is_known() -> None:
    assert weight("int8", None).known_db == 30.0
    blind = weight("int8", None, None, None)
    assert blind.known_db == 20.0
    assert blind.errs() == "the weight reaches 20.0 dB"


def test_the_gain_is_told_where_there_is_one_to_tell() -> None:
    assert weight("int4", 32).errs() == "its outputs reach 30.0 dB, +2.0 dB over rounding to nearest"
    assert weight("int4", 32, gain_db=None).errs() == "its outputs reach 30.0 dB"
    judged = dataclasses.replace(weight("int4", 32), judged="in sample")
    assert judged.errs() == "its outputs reach 30.0 dB, +2.0 dB over rounding to nearest (in sample)"


def test_figures_are_finite_and_short() -> None:
    assert weight("int8", None, math.inf, 1.23456).figures() == {"weight_db": 20.0, "gain_db": 1.235}


def test_the_lowering_gets_the_integers_by_node_in_order() -> None:
    found = stored(B=10.0, A=20.0)
    assert list(found.blocks()) == ["B", "A"]
    assert found.blocks()["A"] is found.weights["A"].blocks
