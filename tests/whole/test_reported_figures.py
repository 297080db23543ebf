"""What is reported holds on other data: models and data of kinds that make a figure look too good.

Each kind is drawn by a seed: weights, and samples of which some calibrate, choose and judge, and others, which the
compiler never sees, tell the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompiler.compiler.compile import quantize
from qcompiler.recipe.recipe import Recipe
from qcompiler.verification.compare import verify
from tests.kit.rewrite import Spec, model

Feeds = dict[str, NDArray[Any]]
Draw = Callable[[np.random.Generator], Feeds]
SEEN, UNSEEN = 32, 96
TOO_GOOD_DB = 3.0
WIDTH = 48


@dataclass(frozen=True)
class Kind:
    """A family of models with its data."""

    proto: Callable[[np.random.Generator], onnx.ModelProto]
    draw: Draw


def weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()}


def mlp(rng: np.random.Generator, *tail: Spec, outputs: tuple[str, ...] = ("y",), **more: Any) -> onnx.ModelProto:
    values = weights(rng, w1=(WIDTH, 96), w2=(96, 96), w3=(96, WIDTH)) | more
    body: list[Spec] = [("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "c"), ("Relu", "c", "d")]
    return model(*body, ("MatMul", "d w3", "h"), *tail, inputs={"x": ("n", 8, WIDTH)}, outputs=outputs, weights=values)


def plain(rng: np.random.Generator) -> onnx.ModelProto:
    return mlp(rng, ("Identity", "h", "y"))


def loud_and_quiet(rng: np.random.Generator) -> onnx.ModelProto:
    """A loud output and a quiet one, and both in one tensor."""
    tail: list[Spec] = [
        ("Mul", "h thousand", "loud"), ("MatMul", "d w4", "q"), ("Sigmoid", "q", "s"),
        ("Concat", "loud s", "y", {"axis": -1}),
    ]  # fmt: skip
    wide = weights(rng, w4=(96, 8))["w4"]
    wide[:4] *= 30  # a few wide rows make the quiet part sensitive
    return mlp(rng, *tail, thousand=np.float32(1000), w4=wide)


def classes(rng: np.random.Generator) -> onnx.ModelProto:
    return mlp(rng, ("ArgMax", "h", "y", {"axis": -1}))


def normal(rng: np.random.Generator) -> Feeds:
    return {"x": rng.standard_normal((1, 8, WIDTH)).astype(np.float32)}


def heavy(rng: np.random.Generator) -> Feeds:
    return {"x": rng.standard_t(3, (1, 8, WIDTH)).astype(np.float32)}


def of_any_loudness(rng: np.random.Generator) -> Feeds:
    return {"x": normal(rng)["x"] * np.float32(rng.lognormal(0, 0.7))}


def padded(rng: np.random.Generator) -> onnx.ModelProto:
    values = weights(rng, w1=(WIDTH, 96), w2=(96, WIDTH), table=(200, WIDTH))
    values["table"][0] *= 40  # what stands in padding is arbitrary
    nodes: list[Spec] = [
        ("Gather", "table ids", "x"), ("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "y"),
    ]  # fmt: skip
    ids = (np.int64, ("n", 12))
    return model(*nodes, ("Cast", "attention_mask", "m", {"to": 1}), inputs={"ids": ids, "attention_mask": ids},
                 outputs=("y", "m"), weights=values)  # fmt: skip


def text(rng: np.random.Generator) -> Feeds:
    length = int(rng.integers(4, 13))
    mask = (np.arange(12) < length).astype(np.int64)[None]
    return {"ids": rng.integers(1, 200, (1, 12)) * mask, "attention_mask": mask}


KINDS = {
    "plain": Kind(plain, normal),
    "heavy tails": Kind(plain, heavy),
    "any loudness": Kind(plain, of_any_loudness),
    "loud and quiet": Kind(loud_and_quiet, normal),
    "classes": Kind(classes, normal),
    "padding": Kind(padded, text),
}


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("name", KINDS)
def test_a_figure_is_never_more_than_3_db_too_good(tmp_path: Path, name: str, target: str) -> None:
    rng = np.random.default_rng([*name.encode()])
    kind = KINDS[name]
    proto = kind.proto(rng)
    onnx.save(proto, tmp_path / "m.onnx")
    seen, unseen = ([kind.draw(rng) for _ in range(count)] for count in (SEEN, UNSEEN))
    recipe = Recipe(target=target, allow_broken=True)
    result = quantize(tmp_path / "m.onnx", data=seen, recipe=recipe, output=tmp_path / "q.onnx")
    assert result.verification is not None
    assert not result.verification.in_sample
    truth = verify(tmp_path / "m.onnx", result.qdq_path, unseen, samples=None, drift=False)
    told = {view.name: view for view in result.verification.views}
    assert told.keys() == {view.name for view in truth.views}
    for view in truth.views:
        if view.sqnr_db is not None:
            reported = told[view.name].sqnr_db
            assert reported is not None
            spread = told[view.name].margin_db or 0.0  # what other samples may take is said beside the figure
            assert reported - spread <= view.sqnr_db + TOO_GOOD_DB, view
    assert result.manifest["verification"]["worst_sqnr_db"] == pytest.approx(result.verification.worst_sqnr_db)


@pytest.mark.parametrize("name", ["heavy tails", "any loudness", "loud and quiet"])
def test_what_nobody_would_ship_is_called_so(tmp_path: Path, name: str) -> None:
    """A layer's scale that is eight times too large, in a graph that was right."""
    rng = np.random.default_rng([*name.encode()])
    kind = KINDS[name]
    onnx.save(kind.proto(rng), tmp_path / "m.onnx")
    seen = [kind.draw(rng) for _ in range(SEEN)]
    recipe = Recipe(target="onnxruntime", allow_broken=True)
    result = quantize(tmp_path / "m.onnx", data=seen, recipe=recipe, output=tmp_path / "q.onnx")
    wrong = onnx.load(result.qdq_path)
    scale = next(one for one in wrong.graph.initializer if one.name.endswith("scale") and "w2" in one.name)
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(8), scale.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    found = verify(tmp_path / "m.onnx", tmp_path / "wrong.onnx", seen, samples=8, drift=False)
    assert found.worst_sqnr_db is not None
    assert found.worst_sqnr_db < 3
