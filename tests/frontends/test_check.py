"""Holding an export against its module: what counts as an error, and what is said where it is too large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, check, compare, token_ids
from tests.kit.rewrite import model

INF = float("inf")


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([[1.0, 2.0]], [1.0, 2.0], INF),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([1.0, 2.0], [1.0, np.nan], INF),
        ([np.nan, 2.0], [1.0, 2.0], INF),
        ([0.25], [0.0], 0.25),
        ([], [], 0.0),
    ],
    ids=["equal", "off", "shape", "infinite in both", "finite in one", "broken", "of zeros", "empty"],
)
def test_the_error_is_relative_to_the_largest_value(got: list[Any], want: list[Any], error: float) -> None:
    assert compare("step", "y", got, want) == Compared("step", "y", pytest.approx(error))  # type: ignore[arg-type]


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """y = 2x, for x [2, 4] alone."""
    proto = model(("Mul", "x two", "y"), weights={"two": np.float32(2)})
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def against(factor: float, rows: int = 2) -> Check:
    def each(run: Run) -> Iterator[Compared]:
        x = np.ones((rows, 4), np.float32)
        yield compare("first", "y", run({"x": x})["y"], 2 * x)
        yield compare("second", "y", run({"x": x.T.copy().T})["y"], factor * x)

    return each


def test_every_step_of_every_file_is_compared(doubling: Path) -> None:
    found = check([doubling, doubling], [against(2.0), against(2.1)], 0.1, "it")
    assert [(one.step, one.error) for one in found[:3]] == [("first", 0.0), ("second", 0.0), ("first", 0.0)]
    assert found[3].error == pytest.approx(0.1 / 2.1, rel=1e-4)


def test_the_worst_step_is_named_where_it_is_too_large(doubling: Path) -> None:
    with pytest.raises(ModelError, match=r"export of it .* 'y' is off by 4\.8e-02 .* step 'second', and 1e-04") as told:
        check([doubling, doubling], [against(2.0), against(2.1)], 1e-4, "it")
    assert "Nothing was written" in str(told.value)


def test_sizes_that_the_graph_does_not_take_are_named(doubling: Path) -> None:
    with pytest.raises(ModelError, match=r"does not run on inputs of other sizes .* \(x \(3, 4\)\)"):
        check([doubling], [against(2.0, rows=3)], 1e-4, "it")


class Words:
    """A tokenizer of three ids."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [3, 5, 7]}


def test_tokens_of_a_text_are_repeated_to_the_length() -> None:
    assert token_ids(Words(), 10, 7) == ([3, 5, 7, 3, 5, 7, 3], True)


@pytest.mark.parametrize("tokenizer", [None, Words()], ids=["none", "of another model"])
def test_random_tokens_fit_the_vocabulary_and_are_the_same_each_time(tokenizer: Any) -> None:
    ids, text = token_ids(tokenizer, 6, 50)
    assert not text
    assert len(ids) == 50
    assert 0 <= min(ids) <= max(ids) < 6
    assert token_ids(tokenizer, 6, 50)[0] == ids
