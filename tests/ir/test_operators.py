"""The tables of operators name operators that exist, and what a table says of them is what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompiler.ir import operators
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model

TABLES = {name: table for name, table in vars(operators).items() if name.isupper() and not isinstance(table, str)}
ONNX = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx")}
OTHERS = {  # of ONNX Runtime's own domain
    "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FusedMatMul", "MatMulIntegerToFloat", "MatMulNBits",
    "QAttention", "QGemm", "SimplifiedLayerNormalization", "SkipLayerNormalization",
}  # fmt: skip
X = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
# What an operator needs beside x [2, 4, 3, 3]
INTEGERS: dict[str, dict[str, Any]] = {
    "Reshape": {"shape": [4, 18]},
    "Unsqueeze": {"axes": [1]},
    "Expand": {"shape": [2, 2, 4, 3, 3]},
    "Slice": {"starts": [1], "ends": [3], "axes": [1]},
    "Gather": {"indices": [1, 0, 1]},
    "Split": {"sizes": [1, 1]},
}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Transpose": {"perm": [0, 2, 3, 1]},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Cast": {"to": onnx.TensorProto.FLOAT},
    "Concat": {"axis": 1},
    "DepthToSpace": {"blocksize": 2},
    "SpaceToDepth": {"blocksize": 3},
}


def computed(op: str, x: NDArray[np.float32], *others: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All outputs of one operator of which x is the first input."""
    names = ["x", *(f"x{i}" for i in range(len(others)))]
    weights = {name: np.array(value, np.int64) for name, value in INTEGERS.get(op, {}).items()}
    outputs = ["y", "z"] if op == "Split" else ["y"]
    spec = (op, " ".join((*names, *weights)), " ".join(outputs), ATTRIBUTES.get(op, {}))
    arrays = dict(zip(names, (x, *others), strict=True))
    proto = model(spec, inputs={k: v.shape for k, v in arrays.items()}, outputs=outputs, weights=weights, opset=20)
    found = Session((proto, {}), quick=True, threads=1).run(arrays)
    return [np.asarray(found[name]) for name in outputs]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_name_is_an_operator_and_stands_once(name: str) -> None:
    table = TABLES[name]
    assert set(table) <= ONNX | OTHERS
    assert len(set(table)) == len(table)
    assert isinstance(table, tuple | frozenset)


@pytest.mark.parametrize("op", operators.VIEWS)
def test_views_have_all_elements_each_once(op: str) -> None:
    (y,) = computed(op, X)
    np.testing.assert_array_equal(np.sort(y, axis=None), np.sort(X, axis=None))


@pytest.mark.parametrize("op", sorted(operators.PICKS))
def test_picks_make_no_new_element(op: str) -> None:
    for y in computed(op, X):
        assert np.isin(y, X).all()


@pytest.mark.parametrize("op", operators.COMMUTING)
def test_rounding_before_is_rounding_behind(op: str) -> None:
    others = (X * 2,) if op == "Concat" else ()
    for behind, before in zip(computed(op, X, *others), computed(op, _rounded(X), *map(_rounded, others)), strict=True):
        np.testing.assert_array_equal(_rounded(behind), before)


def _rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.clip(np.rint(x / np.float32(0.1)), -128, 127), np.float32)


@pytest.mark.parametrize("op", operators.HOMOGENEOUS)
def test_a_positive_scale_passes_through_what_is_homogeneous(op: str) -> None:
    slopes = [np.array([0.5, 2, -1], np.float32)] if op == "PRelu" else []
    (y,), (scaled,) = computed(op, X, *slopes), computed(op, X / np.float32(4), *slopes)  # by a power of two: exact
    np.testing.assert_array_equal(scaled, y / 4)


# Swish begins with opset 24, for which ONNX Runtime has no kernel
@pytest.mark.parametrize("op", sorted(operators.ELEMENTWISE & operators.POINTWISE - {"Where", "Swish"}))
def test_channels_may_stand_in_another_order_where_elements_are_computed_alone(op: str) -> None:
    order, positive = [2, 0, 3, 1], np.abs(X) + np.float32(0.1)
    schema = onnx.defs.get_schema(op, max_inclusive_version=20)
    others = (positive[::-1].copy(),) * (schema.min_input - 1)
    (y,) = computed(op, positive, *others)
    (moved,) = computed(op, positive[:, order].copy(), *(one[:, order].copy() for one in others))
    np.testing.assert_array_equal(moved, y[:, order])


def test_tables_that_build_on_each_other_do() -> None:
    assert set(operators.REARRANGES) < set(operators.VIEWS)
    assert set(operators.COMMUTING) < set(operators.CARRIES)
    assert set(operators.PRODUCTS) < set(operators.LINEAR) < operators.MULTIPLYING
    assert operators.SATURATES | operators.AMPLIFIES - {"Atanh"} <= operators.POINTWISE
    assert not operators.MOVES & operators.POINTWISE
    assert not operators.ACCUMULATES & (operators.MOVES | operators.POINTWISE)
