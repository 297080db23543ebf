"""Whether two sets of data were prepared alike: what is told, in which words, and what is no difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qcompiler.data.alike import differences
from qcompiler.data.spread import Spread, Spreads

PICTURE = np.random.default_rng(0).uniform(0, 255, (4, 3, 16, 16)).round()
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FORMS: dict[str, Callable[[Any], Any]] = {
    "0..255": lambda x: x,
    "0..1": lambda x: x / 255,
    "-1..1": lambda x: x / 127.5 - 1,
    "normalised": lambda x: (x / 255 - MEAN[:, None, None]) / STD[:, None, None],
    "mean": lambda x: x - 255 * MEAN[:, None, None],
}


def spread(values: Any, dtype: Any = np.float32) -> dict[str, Spread]:
    spreads = Spreads()
    spreads.watch({"x": np.asarray(values).astype(dtype)})
    return spreads.found()


def told(first: Any, second: Any, dtype: Any = np.float32) -> list[str]:
    return list(differences(spread(first, dtype), spread(second, dtype), "calibration data", "metric data"))


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_pictures_of_two_preparations_are_told_apart(first: str, second: str) -> None:
    found = told(FORMS[first](PICTURE[:2]), FORMS[second](PICTURE[2:]))
    near = {first, second} == {"-1..1", "normalised"}  # half the spread around the same place
    assert len(found) == (first != second and not near)


def test_both_ranges_and_the_guess_are_in_the_sentence() -> None:
    (text,) = told(FORMS["0..255"](PICTURE), FORMS["0..1"](PICTURE))
    assert text.startswith(
        "input 'x' has other values in the metric data than in the calibration data: 0 to 1 (mean 0."
    )
    assert "against 0 to 255 (mean 12" in text
    assert "255 times smaller; it looks like 0..1 against 0..255" in text
    (text,) = told(FORMS["0..1"](PICTURE), FORMS["normalised"](PICTURE))
    assert "values normalised by mean and standard deviation against 0..1" in text
    (text,) = told(FORMS["mean"](PICTURE), FORMS["0..255"](PICTURE))
    assert "only the calibration data has values below zero" in text


def test_a_shift_is_told() -> None:
    noise = np.random.default_rng(1).standard_normal(400)
    (text,) = told(noise + 100, noise + 110)
    assert "shifted by +10" in text


def test_samples_of_one_kind_are_alike() -> None:
    rng = np.random.default_rng(2)
    for draw in (rng.standard_normal, rng.standard_exponential, lambda size: rng.standard_t(3, size), rng.random):
        for _ in range(200):
            assert told(draw(64), draw(64)) == []


def test_a_constant_is_told_where_the_other_set_leaves_it() -> None:
    (text,) = told([16000.0], [8000.0])
    assert "always 8000, against always 16000: the calibration data has never seen another value" in text
    assert told([16000.0], [16000.0]) == []
    assert len(told(np.ones(64), np.arange(64) % 2)) == 1  # padding that calibration had none of
    assert told(np.arange(64) / 64, [0.5]) == []
    assert len(told(np.arange(64) / 64, [7.0])) == 1


def test_few_elements_say_little() -> None:
    assert told([1.0, 2.0, 3.0], [10.0, 90.0, 30.0]) == []


def test_integers_are_compared_where_they_are_pictures() -> None:
    bright, dark = np.arange(256), np.arange(256) // 100
    assert len(told(bright, dark, np.uint8)) == 1
    assert told(np.arange(256), np.arange(256) * 1000, np.int64) == []


def test_inputs_that_one_set_lacks_are_not_compared() -> None:
    assert list(differences(spread([1.0, 2.0]), {}, "a", "b")) == []
