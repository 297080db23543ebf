"""A feed that does not fit the inputs of the model is refused by sample and input, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.data.source import open_source
from qcompiler.errors import DataError
from qcompiler.ir.signature import Inputs
from tests.data.samples import F32, I64, feeds, refused, same


def one(**arrays: Any) -> list[dict[str, Any]]:
    """A good sample before one with these arrays instead."""
    good = feeds(1)[0]
    return [good, {**good, **arrays}]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], ["has no samples"]),
        ([[1, 2]], ["sample 0", "a list"]),
        ([{"x": feeds(1)[0]["x"]}], ["sample 0", "lacks input 'n'"]),
        ([{}], ["sample 0", "lacks input 'x', 'n'", "nothing"]),
        (one(extra=1), ["sample 1", "'extra'", "'x', 'n'"]),
        ([{"X1": 0, "n": np.array([1])}], ["'X1'", "'x', 'n'"]),
        (one(x=[[1.0, 2.0, 3.0, 4.0]]), ["sample 1", "input 'x'", "a list"]),
        (one(x=None), ["sample 1", "input 'x'", "None"]),
        (one(x=np.ones((1, 4))), ["sample 1", "input 'x' is float64", "takes float32", "x.astype(np.float32)"]),
        (one(n=np.array([1], np.int32)), ["input 'n' is int32", "takes int64", "x.astype(np.int64)"]),
        (one(n=np.array([1.0])), ["input 'n' is float64", "after scaling"]),
        (one(x=np.ones((1, 4), ">f4")), ["other byte order", "x.astype(np.float32)"]),
        (one(x=np.array([[None] * 4])), ["input 'x' is Python objects"]),
        (one(x=np.ones(4, np.float32)), ["sample 1", "1 axis [4]", "2: [batch, 4]", "x[None]"]),
        (one(x=np.ones((1, 1, 4), np.float32)), ["3 axes", "a batch axis too many: x[0]"]),
        (one(x=np.ones((2, 1, 4), np.float32)), ["3 axes", "its axis 0 counts samples", "x[i]"]),
        (one(x=np.ones((1, 1, 1, 4), np.float32)), ["4 axes", "reshape"]),
        (one(x=np.ones((1, 5), np.float32)), ["sample 1", "shape [1, 5]", "[batch, 4]"]),
        (one(x=np.array([[0, np.nan, np.inf, 1]], np.float32)), ["sample 1", "input 'x'", "2 of 4 values", "[0, 1]"]),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_by_number_and_input(samples: list[Any], words: list[str]) -> None:
    message = refused(samples)
    assert all(word in message for word in words), message


PICTURES: Inputs = {"x": (F32, ("n", 3, 48, 48))}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 48, 48, 3), ["in another order (NHWC where it takes NCHW)", "x.transpose(0, 3, 1, 2)."]),
        ((1, 60, 50, 3), ["x.transpose(0, 3, 1, 2), and pad, crop or resize it"]),
        ((48, 48, 3), ["x.transpose(2, 0, 1)[None]"]),
        ((60, 50, 3), ["x.transpose(2, 0, 1)[None]"]),
        ((3, 48, 48), ["add the batch axis with x[None]"]),
        ((1, 3, 50, 50), ["pad, crop or resize it"]),
        ((1, 1, 48, 48), ["pad, crop or resize it"]),
    ],
)
def test_the_remedy_is_what_the_shapes_say(shape: tuple[int, ...], words: list[str]) -> None:
    message = refused([{"x": np.ones(shape, np.float32)}], PICTURES)
    assert all(word in message for word in words), message


def test_a_model_without_a_batch_is_told_how_many_it_takes() -> None:
    inputs: Inputs = {"x": (F32, (2, 4))}
    assert "takes 2 at a time on axis 0" in refused([{"x": np.ones((1, 4), np.float32)}], inputs)


def test_bytes_for_floats_are_not_just_converted() -> None:
    message = refused([{"x": np.ones((1, 3, 48, 48), np.uint8)}], PICTURES)
    assert "is uint8, the model takes float32" in message
    assert "x.astype(np.float32) / 255, less its mean, over its standard deviation" in message
    assert "--preprocess" in message


def test_a_misspelt_input_is_guessed() -> None:
    inputs: Inputs = {"input_ids": (I64, ("b",)), "mask": (I64, ("b",))}
    assert "did you mean 'input_ids'?" in refused([{"inputs_id": np.ones(1, int), "mask": np.ones(1, int)}], inputs)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_floats_are_checked_too(dtype: Any) -> None:
    inputs: Inputs = {"x": (np.dtype(dtype), (2,))}
    assert "1 of 2 values that are NaN or infinite" in refused([{"x": np.array([1, np.inf]).astype(dtype)}], inputs)
    assert "takes" in refused([{"x": np.ones(2, np.float32)}], inputs)


def test_text_inputs_take_text() -> None:
    inputs: Inputs = {"t": (np.dtype(object), ("n",))}
    same(list(open_source([{"t": np.array(["a", "b"], object)}], inputs)), [{"t": np.array(["a", "b"], object)}])
    assert len(list(open_source([{"t": np.array(["a", "b"])}], inputs))) == 1
    assert "takes text" in refused([{"t": np.array([1, 2])}], inputs)


def test_a_size_of_0_is_a_size() -> None:
    inputs: Inputs = {"x": (F32, ("frames", 4)), "cache": (F32, ("past", 4)), "same": (F32, ("frames", 4))}
    full, none = np.ones((3, 4), np.float32), np.ones((0, 4), np.float32)
    given = [{"x": x, "cache": cache, "same": x} for x in (full, none) for cache in (full, none)]
    same(list(open_source(given, inputs)), given)
    assert "shape [0, 5]" in refused([{**given[0], "x": np.ones((0, 5), np.float32)}], inputs)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_an_input_that_is_another_float_in_the_source_takes_both_and_gives_float32(dtype: Any, tmp_path: Path) -> None:
    inputs: Inputs = {"x": (F32, ("n", 2))}
    values = np.array([[0.1, 1.0], [3.3, -2.5]])
    expected = [{"x": row[None].astype(dtype).astype(np.float32)} for row in values]
    np.savez(tmp_path / "own.npz", x=values.astype(dtype))  # numpy reads bfloat16 back as |V2
    np.savez(tmp_path / "wide.npz", x=values.astype(np.float32))
    for name in ("own.npz", "wide.npz"):
        same(list(open_source(tmp_path / name, inputs, stored={"x": np.dtype(dtype)})), expected)
    parts = open_source(tmp_path / "own.npz", inputs, batch=2, stored={"x": np.dtype(dtype)})
    same(list(parts.part(parts.prints()[:1])), expected[:1])


def test_types_of_the_source_are_named_where_another_one_is_given() -> None:
    inputs: Inputs = {"x": (F32, (2,))}
    words = r"'x' is float64, the model takes bfloat16; convert it with .*ml_dtypes.bfloat16"
    with pytest.raises(DataError, match=words):
        list(open_source([{"x": np.ones(2)}], inputs, stored={"x": np.dtype(ml_dtypes.bfloat16)}))
    with pytest.raises(DataError, match="NaN or infinite"):
        list(open_source([{"x": np.array([1, 1e6], np.float32)}], inputs, stored={"x": np.dtype(np.float16)}))
    with pytest.raises(DataError, match="takes float32"):  # raw bytes mean nothing where nobody says what they are
        list(open_source([{"x": np.ones(2, "V2")}], inputs))
