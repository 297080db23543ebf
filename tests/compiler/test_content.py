"""Equal values have equal content, whatever process asks; what differs in anything differs in content."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.compiler.content import digest
from qcompiler.target import DType

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True)
class Pair:
    first: object
    second: object = None


@given(plain)
def test_a_copy_has_the_same_content(value: object) -> None:
    again = {**value} if isinstance(value, dict) else value
    assert digest(again) == digest(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        ("1", b"1"),
        ((1, 2), (2, 1)),
        (((1,), 2), ((1, 2),)),
        (("a", "bc"), ("ab", "c")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (0.0, -0.0),
        (DType.INT8, DType.FP8),
        (Pair(1), Pair(None, 1)),
        (Path("a/b"), Path("a/c")),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.zeros(2, np.float32), np.asarray([0, -0.0], np.float32)),
    ],
)
def test_what_differs_has_another_content(one: object, other: object) -> None:
    assert digest(one) != digest(other)


def test_an_array_is_its_values_and_not_its_memory() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert digest(whole[:, 1]) == digest(np.ascontiguousarray(whole[:, 1]))
    assert digest(whole.T) == digest(whole.T.copy())


def test_sets_have_no_order() -> None:
    assert digest(frozenset("abcdef")) == digest(frozenset("fedcba"))


def test_another_process_says_the_same() -> None:
    value = (frozenset({"b", "a"}), {"x": (1, 2.5)}, "text")
    program = f"from qcompiler.compiler.content import digest\nprint(digest({value!r}))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == digest(value)


def test_what_has_no_content_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="generator"):
        digest((1, (one for one in "ab")))
    with pytest.raises(TypeError, match="function"):
        digest({"a": lambda: 1})
