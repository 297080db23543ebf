"""What calibration data lacks, with a remedy that the command line takes."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from qcompiler.data import lacks, profiles
from qcompiler.data.batches import BatchAxes
from qcompiler.data.samples import ShapeRange
from qcompiler.data.spread import ENOUGH, Spread, Spreads
from qcompiler.ir.signature import Inputs
from qcompiler.recipe.checks import parse_shapes

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def test_few_samples_are_told_with_what_follows() -> None:
    (one,) = lacks.samples(1)
    assert one.startswith("only 1 sample of data: about one new sample in 2 goes beyond")
    (few,) = lacks.samples(ENOUGH - 1)
    assert "only 15 different samples" in few
    assert list(lacks.samples(ENOUGH)) == []


def sizes(inputs: Inputs, *feeds: dict[str, tuple[int, ...]]) -> list[str]:
    shapes = ShapeRange()
    for feed in feeds:
        shapes.watch({name: np.zeros(shape, np.float32) for name, shape in feed.items()})
    return list(lacks.sizes(profiles.by_itself(shapes, inputs, BatchAxes(dict.fromkeys(inputs, 0))), inputs))


def test_a_free_axis_of_one_size_is_told_with_shapes_that_can_be_given() -> None:
    inputs: Inputs = {"x": (FLOAT, ("n", 3, "h", 16)), "m": (FLOAT, ("n", "h"))}
    (text,) = sizes(inputs, {"x": (1, 3, 32, 16), "m": (1, 32)})
    assert text.startswith("axis 'n' (size 1), axis 'h' (size 32) are free in the model and have one size in all")
    words = shlex.split(text[text.index("--shapes") :])
    assert words == ["--shapes", "x=1x3x16x16,8x3x32x16,32x3x64x16", "--shapes", "m=1x16,8x32,32x64"]
    assert set(parse_shapes(";".join(words[1::2]))) == {"x", "m"}


def test_an_axis_without_a_name_is_told_by_its_place() -> None:
    (text,) = sizes({"x": (FLOAT, (None, 3))}, {"x": (1, 3)})
    assert text.startswith("axis 0 of 'x' (size 1) is free in the model and has one size")


def test_axes_that_vary_are_none_and_neither_are_fixed_ones() -> None:
    assert sizes({"x": (FLOAT, (2, 3))}, {"x": (2, 3)}) == []
    assert sizes({"x": (FLOAT, (2, "t"))}, {"x": (2, 3)}, {"x": (2, 9)}) == []
    (text,) = sizes({"x": (FLOAT, ("n", "t"))}, {"x": (1, 3)}, {"x": (1, 9)})
    assert "'n'" in text
    assert "'t'" not in text
    assert "x=1x3,8x3,32x9" in text  # what varies stays as it was seen


@pytest.mark.parametrize(
    ("values", "rows", "words"),
    [
        ([3, 5, 900], 1000, None),
        ([3, 5, 1000], 1000, "ids from 3 to 1000: ids go from 0 to 999"),
        ([3, 5, -100], 1000, "ids from -100 to 5"),
        ([7, 7, 7], 1000, "nothing but the id 7"),
        ([0, 0, 0], 2, None),  # kinds of tokens
    ],
)
def test_token_ids_that_cannot_be_text_are_told(values: list[int], rows: int, words: str | None) -> None:
    spreads = Spreads()
    spreads.watch({"ids": np.array(values), "mask": np.ones(3, np.int64)})
    found: dict[str, Spread] = spreads.found()
    told = list(lacks.ids(found, {"ids": rows}, "calibration data"))
    assert len(told) == (words is not None)
    assert words is None or words in told[0]
