"""A float model in the terms of a quantized one: what compile compares and what `verify` compares are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler import quantize, verify
from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.runtime.stream import run_once
from qcompiler.target import parse_target
from qcompiler.verification import alignment
from qcompiler.verification.alignment import QuantizedWeights, aligned
from tests.kit import glu

RTX = parse_target("tensorrt-rtx")


@pytest.fixture(scope="module", params=["int8", "int4-weight", "int4-weight for onnxruntime"])
def smoothed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, float]]:
    """Float file, quantized file, and SQNR of the layers as the compiler saw them."""
    precision, _, target = str(request.param).partition(" for ")
    folder = tmp_path_factory.mktemp("aligned")
    onnx.save(glu.stack(channels=glu.OUTLIERS, layers=2), folder / "f.onnx")
    recipe = Recipe(
        precision=precision, target=target or "tensorrt-rtx", smooth_quant=SmoothQuantTable(alpha=0.6), verify_samples=4
    )
    made = quantize(folder / "f.onnx", data=glu.feeds(16), recipe=recipe, output=folder / "q.qdq.onnx")
    assert made.qdq_path is not None
    assert made.verification is not None
    return folder / "f.onnx", made.qdq_path, {one.tensor: one.sqnr_db for one in made.verification.layers}


def test_verify_sees_of_two_files_what_the_compiler_sees(smoothed: tuple[Path, Path, dict[str, float]]) -> None:
    first, second, known = smoothed
    found = verify(first, second, data=glu.feeds(4, seed=1), recipe=Recipe(verify_samples=4))
    layers = {one.tensor: one.sqnr_db for one in found.layers}
    assert found.remarks == ()
    assert len(layers.keys() & known.keys()) >= 0.9 * len(known)
    for name in layers.keys() & known.keys():
        assert layers[name] > min(known[name], 45) - 4, name  # other data, so not the same figure


def test_the_float_model_stays_the_same_function(smoothed: tuple[Path, Path, dict[str, float]]) -> None:
    first, second, _ = smoothed
    reference = models.load(first)
    after, why = aligned(reference, models.load(second), RTX)
    assert why == ""
    (feed,) = glu.feeds(1)
    before, now = (run_once(one, feed)["logits"] for one in (reference, after))
    np.testing.assert_allclose(now, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())


def test_stored_weights_are_opened_in_the_shape_that_the_product_reads(
    smoothed: tuple[Path, Path, dict[str, float]],
) -> None:
    first, second, _ = smoothed
    weights = QuantizedWeights(models.load(second).graph)
    plain = {node.outputs[0].name: node for node in models.load(first).graph.nodes if node.op == "MatMul"}
    compared = 0
    for name, node in plain.items():
        found = weights.get((name, 1))
        if found is None or not hasattr(node.inputs[1], "values"):
            continue
        own = node.inputs[1].values
        assert found.shape == own.shape
        ratio = np.sum(found * own, axis=1) / np.sum(own * own, axis=1)  # the factor of each input channel
        assert np.sqrt(np.mean((found - ratio[:, None] * own) ** 2)) < 0.25 * np.sqrt(np.mean(found**2))
        compared += 1
    assert compared >= 10
    assert ("ids", 0) not in weights
    assert len(weights) == len(list(weights)) >= compared


def test_where_the_float_passes_refuse_the_model_it_is_compared_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "f.onnx")
    reference = models.load(tmp_path / "f.onnx")

    def refusing(target: object) -> object:
        raise ModelError("node 'x' is odd")

    monkeypatch.setattr(alignment, "clean_up", refusing)
    after, why = aligned(reference, reference, RTX)
    assert after is reference
    assert "as the float file has them" in why
    assert why.endswith("node 'x' is odd")
