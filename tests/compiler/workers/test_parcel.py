"""Work that crosses to another process: the same values, begun once, and never by another qcompiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.workers.parcel import Named, opened, packed, work
from qcompiler.errors import UsageError
from qcompiler.support import memory

BEGUN: list[float] = []


def scaling(factor: float) -> Callable[[float], float]:
    BEGUN.append(factor)
    return lambda value: factor * value


def begun_in() -> Callable[[int], int | None]:
    return lambda _: memory.room().piece


def test_a_value_crosses_with_its_arrays() -> None:
    values = np.arange(5000, dtype=np.float32)
    again = opened(packed({"a": values, "b": (1, "x")}))
    assert np.array_equal(again["a"], values)
    assert not again["a"].flags.writeable
    assert again["b"] == (1, "x")


def test_what_items_share_is_opened_once_as_long_as_it_is_the_same() -> None:
    BEGUN.clear()
    named = Named.of(scaling)
    for key, factor in (("one", 2.0), ("one", 2.0), ("other", 3.0), ("one", 2.0)):
        found = opened(work(key, named, packed((factor,)), packed(5.0)))
        assert found == 5 * factor
    assert BEGUN == [2.0, 3.0, 2.0]


def test_another_qcompiler_refuses() -> None:
    other = dataclasses.replace(packed(1), own="another")
    with pytest.raises(UsageError, match="another version of qcompiler"):
        opened(other)


def test_who_works_for_a_compilation_that_is_short_of_memory_works_as_it_does(tmp_path: Path) -> None:
    named = Named.of(begun_in)
    with memory.limited(800, tmp_path):
        assert opened(work("wide", named, packed(()), packed(0))) is None
        memory.weigh(800)
        asked = packed(0)
    assert opened(work("short", named, packed(()), asked)) == 100
    assert memory.room() == memory.Room()
