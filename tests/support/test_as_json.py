"""Whatever a manifest holds becomes JSON that every reader takes, and nothing in it is NaN or infinite."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.support.as_json import plain
from qcompiler.target import DType


@dataclass
class _Point:
    z: float
    a: object


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.floats(width=32).map(np.float32)
    | st.integers(-(2**31), 2**31 - 1).map(np.int32)
    | st.sampled_from(DType)
    | st.booleans().map(np.bool_)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(_Point, st.floats(), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(values)
def test_anything_becomes_strict_json_that_reads_back_equal(value: Any) -> None:
    made = plain(value)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert plain(made) == made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, "inf"),
        (np.float32(-np.inf), "-inf"),
        (np.array([[1.0, np.nan], [np.inf, -2.0]]), [[1.0, None], ["inf", -2.0]]),
        (np.array([]), []),
        (np.array(3), 3),
        (DType.INT8, "int8"),
        (Path("ordner/模型.onnx"), "ordner/模型.onnx"),
        ({3, 1, 2}, [1, 2, 3]),
        pytest.param(frozenset({"b", "a"}), ["a", "b"], id="a set of texts"),  # whose own order differs by process
        ((1, (2,)), [1, [2]]),
        ({1: "one", None: "none"}, {"1": "one", "None": "none"}),
        (_Point, str(_Point)),
    ],
    ids=repr,
)
def test_each_kind_has_one_form(value: Any, expected: Any) -> None:
    made = plain(value)
    assert made == expected
    assert type(made) is type(expected)


def test_keys_and_fields_keep_their_order() -> None:
    assert list(plain(_Point(1.0, {"y": 0, "b": 1}))) == ["z", "a"]
    assert list(plain({"y": 0, "b": 1})) == ["y", "b"]


def test_truth_stays_truth_and_is_no_number() -> None:
    assert plain(np.bool_(True)) is True
    assert plain([True, np.int64(1)]) == [True, 1]
    assert type(plain(np.int64(1))) is int
