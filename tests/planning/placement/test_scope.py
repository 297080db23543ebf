"""Which layers may be quantized, asked again of edited models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import model as models
from qcompiler.plan import Refusal
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.scope import Scope
from qcompiler.target import parse_target
from tests.kit.rewrite import model

RTX = parse_target("tensorrt-rtx")
STORED = np.random.default_rng(0).integers(-127, 128, (32, 32)).astype(np.int8)


@pytest.fixture
def loaded(tmp_path: Path) -> models.Model:
    """Two float layers, and one whose weight came asymmetric."""
    proto = model(
        ("MatMul", "x w", "a"),
        ("MatMul", "a w", "b"),
        ("DequantizeLinear", "q s z", "d"),
        ("MatMul", "b d", "y"),
        inputs={"x": (4, 32)},
        weights={
            "w": np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32),
            "q": STORED,
            "s": np.float32(0.1),
            "z": np.int8(3),
        },
        opset=21,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


def test_layers_are_those_of_the_rules(loaded: models.Model) -> None:
    scope = Scope(RTX, ("^B$",))
    found, refused = scope.layers(loaded)
    assert (found, refused) == candidates.find_candidates(loaded.graph, RTX, ("^B$",))
    assert [one.node for one in found] == ["A"]
    assert {one.node: one.rule for one in refused} == {"B": "kept", "Y": "weight-only"}


def test_where_nothing_is_quantized_only_what_came_so_is_told(loaded: models.Model) -> None:
    found, refused = Scope(RTX, ("^B$",), quantizes=False).layers(loaded)
    assert not found
    assert {one.node: one.rule for one in refused} == {"Y": "weight-only"}


def test_a_scope_is_a_value() -> None:
    scope = Scope(RTX, ("head",))
    assert scope == Scope(RTX, ("head",))
    assert hash(scope) == hash(Scope(RTX, ("head",)))
    assert scope != Scope(RTX, ())


def test_layers_that_the_data_has_shown_too_little_of_are_refused_as_long_as_they_are_there(
    loaded: models.Model,
) -> None:
    unseen = tuple(Refusal(name, "MatMul", "zero", "'x' was 0") for name in ("A", "GONE"))
    found, refused = Scope(RTX, unseen=unseen).layers(loaded)
    assert [one.node for one in found] == ["B"]
    assert [one.node for one in refused if one.rule == "zero"] == ["A"]


def test_layers_know_the_ranges_that_were_given(loaded: models.Model) -> None:
    scope = Scope(RTX, ranges={"a": Span(-2.0, 1.0)})
    assert {one.node: one.known for one in scope.layers(loaded).found} == {"A": None, "B": 2.0}
    assert scope != Scope(RTX)
