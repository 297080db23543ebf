"""Five samples of two inputs, as feeds and as an archive, and how a source refuses what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.data.source import open_source
from qcompiler.errors import DataError
from qcompiler.ir.signature import Feeds, Inputs

Array = np.ndarray[Any, Any]
F32: np.dtype[Any] = np.dtype(np.float32)
I64: np.dtype[Any] = np.dtype(np.int64)
INPUTS: Inputs = {"x": (F32, ("batch", 4)), "n": (I64, ("batch",))}
write: Callable[..., None] = np.savez
pack: Callable[..., None] = np.savez_compressed


def feeds(count: int = 5) -> list[Feeds]:
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    return [{"x": x[i : i + 1], "n": np.array([i])} for i in range(count)]


def stacked(count: int = 5) -> Feeds:
    return {name: np.concatenate([one[name] for one in feeds(count)]) for name in INPUTS}


def same(found: list[Feeds], expected: list[Feeds]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def refused(data: Any, inputs: Any = INPUTS, **options: Any) -> str:
    """The message of the DataError that opening or walking `data` ends with."""
    with pytest.raises(DataError) as caught:
        list(open_source(data, inputs, **options))
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "\n" not in message
    return message


def in_npz(folder: Path, savez: Callable[..., None] = write) -> Path:
    savez(folder / "set.npz", **stacked())
    return folder / "set.npz"
