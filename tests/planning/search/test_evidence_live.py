"""Generated models with a part that the calibration data never uses: on data that uses it they stay close to float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import power, sqnr_db
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.stream import OpenModel
from tests.kit.rewrite import Spec, model

D, T, SAMPLES = 32, 24, 16
CLOSE_DB = 28.0
Make = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Side:
    """A part of the model: its nodes, which write `side_out` [n, T, D] or [1, T, D], and its inputs.

    `idle` and `live` make the content of an input in calibration and in use, `named` is what the warning must name.
    """

    nodes: tuple[Spec, ...]
    inputs: dict[str, Any]
    idle: dict[str, Make]
    live: dict[str, Make]
    named: str


def normal(*shape: int, scale: float = 1.0) -> Make:
    return lambda rng: (scale * rng.standard_normal((1, *shape))).astype(np.float32)


def fill(value: float, *shape: int, dtype: Any = np.float32) -> Make:
    return lambda rng: np.full((1, *shape), value, dtype)


def once(make: Make) -> Make:
    return lambda rng: make(np.random.default_rng(99))


LAYERS: tuple[Spec, ...] = (
    ("MatMul", "read s1", "sm"),
    ("Add", "sm sb", "sa"),
    ("Relu", "sa", "sr"),
    ("MatMul", "sr s2", "st"),
    ("Add", "st sc", "side_out"),
)
SIDES = {
    "an input of zeros": Side(
        (("Identity", "side", "read"), *LAYERS),
        {"side": ("n", T, D)},
        {"side": fill(0, T, D)},
        {"side": normal(T, D, scale=8)},
        "side",
    ),
    "an input of one content": Side(
        (("Identity", "side", "read"), *LAYERS),
        {"side": ("n", T, D)},
        {"side": once(normal(T, D, scale=0.1))},
        {"side": normal(T, D, scale=8)},
        "side",
    ),
    "a mask of zeros in front of a norm": Side(
        (("Mul", "x gate", "xg"), ("LayerNormalization", "xg ln_g ln_b", "read", {"axis": -1}), *LAYERS),
        {"gate": ("n", T, 1)},
        {"gate": fill(0, T, 1)},
        {"gate": fill(1, T, 1)},
        "gate",
    ),
    "a condition that never held": Side(
        (("Where", "use x zero", "read"), *LAYERS),
        {"use": (np.bool_, ("n", T, 1))},
        {"use": fill(0, T, 1, dtype=np.bool_)},
        {"use": fill(1, T, 1, dtype=np.bool_)},
        "read",
    ),
    "ids of one kind": Side(
        (("Gather", "table kind", "read"), *LAYERS),
        {"kind": (np.int64, ("n", T))},
        {"kind": fill(0, T, dtype=np.int64)},
        {"kind": lambda rng: rng.integers(1, 8, (1, T))},
        "kind",
    ),
    "an attention to zeros": Side(
        (
            ("MatMul", "side s1", "km"),
            ("MatMul", "side s2", "vm"),
            ("Add", "vm sb", "v"),
            ("Transpose", "km", "kt", {"perm": [0, 2, 1]}),
            ("MatMul", "x kt", "score"),
            ("Softmax", "score", "p", {"axis": -1}),
            ("MatMul", "p v", "o"),
            ("MatMul", "o s3", "om"),
            ("Add", "om sc", "side_out"),
        ),
        {"side": ("n", T, D)},
        {"side": fill(0, T, D)},
        {"side": normal(T, D, scale=4)},
        "side",
    ),
    "an expert that no row reached": Side(
        (
            ("Reshape", "x rows", "flat"),
            ("Reshape", "route all", "routed"),
            ("NonZero", "routed", "found"),
            ("Transpose", "found", "index"),
            ("GatherND", "flat index", "read"),
            *LAYERS[:-1],
            ("Add", "st sc", "made"),
            ("Mul", "flat zero", "nothing"),
            ("ScatterND", "nothing index made", "spread"),
            ("Shape", "x", "shape"),
            ("Reshape", "spread shape", "side_out"),
        ),
        {"route": (np.int64, ("n", T))},
        {"route": fill(0, T, dtype=np.int64)},
        {"route": lambda rng: rng.integers(0, 2, (1, T))},
        "SM",
    ),
}


def net(side: Side, seed: int) -> onnx.ModelProto:
    """A layer of x plus the side, then a norm and two layers that are live in all data."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Any:
        return (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    weights = {name: matrix(D, D) for name in ("wa", "s1", "s2", "s3")} | {
        "up": matrix(D, 4 * D),
        "down": matrix(4 * D, D),
    }
    weights |= {name: (0.2 * rng.standard_normal(D)).astype(np.float32) for name in ("sb", "sc", "ln_b")}
    table = np.concatenate([0.1 * rng.standard_normal((1, D)), 6 * rng.standard_normal((7, D))])
    weights |= {"ln_g": np.ones(D, np.float32), "zero": np.float32(0), "table": table.astype(np.float32)}
    weights |= {"rows": np.array([-1, D], np.int64), "all": np.array([-1], np.int64)}
    used = {name for one in (*side.nodes, *REST) for name in one[1].split()}
    return model(
        *side.nodes,
        *REST,
        inputs={"x": ("n", T, D), **side.inputs},
        weights={name: value for name, value in weights.items() if name in used},
        opset=17,
    )


REST: tuple[Spec, ...] = (
    ("MatMul", "x wa", "xa"),
    ("Add", "xa side_out", "h"),
    ("LayerNormalization", "h ln_g", "ln", {"axis": -1}),
    ("MatMul", "ln up", "u"),
    ("Relu", "u", "ur"),
    ("MatMul", "ur down", "dn"),
    ("Add", "h dn", "y"),
)


def feeds(makers: dict[str, Make], seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    return [{name: make(rng) for name, make in {"x": normal(T, D), **makers}.items()} for _ in range(SAMPLES)]


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm89", "onnxruntime"])
@pytest.mark.parametrize("kind", SIDES)
def test_a_part_that_calibration_never_used_still_works_when_it_is(tmp_path: Path, kind: str, target: str) -> None:
    side = SIDES[kind]
    onnx.save(net(side, len(kind)), tmp_path / "m.onnx")
    done = qcompiler.quantize(
        tmp_path / "m.onnx", data=feeds(side.idle, 1), recipe=Recipe(target=target), output=tmp_path / "m.qdq.onnx"
    )
    plain, low = OpenModel(tmp_path / "m.onnx"), OpenModel(tmp_path / "m.qdq.onnx")
    signal = noise = 0.0
    for feed in feeds(side.live, 2):
        expected, got = plain.run(feed)["y"], low.run(feed)["y"]
        signal, noise = signal + power(expected), noise + power(expected - got)
    assert sqnr_db(signal, noise) > CLOSE_DB
    assert done.plan.share() > 0.5
    told = [text for text in done.manifest["warnings"] if f"'{side.named}'" in text]
    assert len(told) == 1
    assert "calibration samples" in told[0]


@pytest.mark.parametrize(("kind", "target"), list(zip(SIDES, 4 * ["tensorrt-rtx:sm89", "onnxruntime"], strict=False)))
def test_data_that_uses_the_part_quantizes_it_and_nothing_is_said(tmp_path: Path, kind: str, target: str) -> None:
    side = SIDES[kind]
    onnx.save(net(side, len(kind)), tmp_path / "m.onnx")
    mixed = [*feeds(side.live, 3), *feeds(side.idle, 4)]
    done = qcompiler.quantize(
        tmp_path / "m.onnx", data=mixed, recipe=Recipe(target=target), output=tmp_path / "m.qdq.onnx"
    )
    rules = {one.rule for one in done.plan}
    assert not rules & {"unseen", "zero", "constant", "few-elements"}
    assert not [text for text in done.manifest["warnings"] if "sample" in text and "range" in text]
