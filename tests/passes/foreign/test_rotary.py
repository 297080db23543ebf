"""RotaryEmbedding, written out and held against ONNX Runtime's own kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from tests.kit.rewrite import check_skipped, check_written, model

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


TABLES = {"c": draw(16, 2), "s": draw(16, 2)}
BY_ROW = ("x", ("batch", "rows", 8), draw(2, 5, 8))
BY_HEAD = ("x", ("batch", 2, "rows", 4), draw(2, 2, 5, 4))


def turning(shape: Any, positions: Any, attrs: dict[str, Any]) -> Any:
    return model(
        ("RotaryEmbedding", "x p c s", "y", attrs, MICROSOFT),
        inputs={"x": shape, "p": (np.int64, positions)}, weights=TABLES, opset=21,
    )  # fmt: skip


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("given", [BY_ROW, BY_HEAD], ids=["by row", "by head"])
def test_features_are_turned(given: Any, first: bool, interleaved: int) -> None:
    _, shape, value = given
    positions = np.array([3]) if first else RNG.integers(0, 16, (2, 5))
    proto = turning(shape, (1,) if first else ("batch", "rows"), {"interleaved": interleaved})
    check_written(WriteOutFused(), proto, {"x": value, "p": positions})


@pytest.mark.parametrize("interleaved", [0, 1])
def test_some_features_of_a_head(interleaved: int) -> None:
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": 4, "num_heads": 2}
    proto = turning(("batch", "rows", 16), ("batch", "rows"), attrs)
    check_written(WriteOutFused(), proto, {"x": draw(2, 5, 16), "p": RNG.integers(0, 16, (2, 5))})


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"scale": 2.0}, "has scale=2.0"),
        ({"is_packed_batching": 1}, "has is_packed_batching=1"),
        ({"rotary_embedding_dim": 4}, "without 'num_heads'"),
    ],
)
def test_other_forms_stay(attrs: dict[str, Any], why: str) -> None:
    check_skipped(WriteOutFused(), turning(("batch", "rows", 8), ("batch", "rows"), attrs), why)
