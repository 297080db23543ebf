"""Decibels, powers and relative errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.numerics.sqnr import (
    EXACT_DB,
    NOTHING,
    cosine,
    decibel,
    energy,
    gain_db,
    noise_power,
    power,
    relative_error,
    sqnr_db,
    sqnr_of,
)


def test_sqnr_of_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    x = np.full(10, 3.0, np.float32)
    assert sqnr_of(x, x / 10) == pytest.approx(20)
    assert sqnr_of(x, x * 0) == float("inf")
    assert sqnr_of(x * 0, x) == float("-inf")


def test_power_does_not_overflow_in_half_precision() -> None:
    assert power(np.full(3_000_000, 100, np.float16)) == 3e10


def test_relative_error_is_against_the_largest_reference_value() -> None:
    x = np.array([1.0, -4.0])
    assert relative_error(x, x + 0.5) == 0.125
    assert relative_error(x, x) == relative_error(x * 0, x * 0) == 0.0
    assert relative_error(x * 0, x) == float("inf")
    assert relative_error(np.array([np.nan, np.inf, 2.0]), np.array([np.nan, np.inf, 1.0])) == 0.5
    assert relative_error(np.array([1.0]), np.array([np.nan])) == float("inf")


def test_sqnr_of_sums_of_squares() -> None:
    assert sqnr_db(100, 1) == pytest.approx(20)
    assert sqnr_db(0, 0) == sqnr_db(1, 0) == math.inf
    assert sqnr_db(0, 1) == sqnr_db(1, math.inf) == sqnr_db(1, math.nan) == sqnr_db(1e-320, 1e10) == -math.inf


def test_a_noise_power_and_its_decibels_are_inverse() -> None:
    assert noise_power(20) == pytest.approx(0.01)
    assert decibel(noise_power(33.3)) == pytest.approx(33.3)


def test_no_error_is_200_decibels_or_what_is_asked_for() -> None:
    assert decibel(0) == decibel(NOTHING) == EXACT_DB == 200
    assert decibel(0, 1e-30) == pytest.approx(300)
    assert decibel(0, 0.0) == math.inf
    assert decibel(math.inf) == decibel(math.nan) == -math.inf


def test_a_gain_is_how_far_a_power_falls() -> None:
    assert gain_db(1, 0.1) == pytest.approx(10)
    assert gain_db(0, 0) == 0
    assert gain_db(1, 0) == pytest.approx(300)
    assert gain_db(1, math.inf) == -math.inf


def test_energy_is_the_sum_of_squares_also_where_fp32_overflows() -> None:
    assert energy(np.full((2, 2), 3, np.float32)) == 36
    assert energy(np.full(40_000, 1e20, np.float32)) == pytest.approx(4e44)


def test_cosine_of_sums() -> None:
    assert cosine(6, 4, 9) == 1
    assert cosine(-3, 4, 9) == -0.5
    assert cosine(0, 0, 9) == 0
