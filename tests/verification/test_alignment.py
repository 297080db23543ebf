"""A float model in the terms of a quantized one: what compile compares and what `verify` compares are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import quantize, verify
from qcompiler.errors import ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.runtime.stream import run_once
from qcompiler.target import parse_target
from qcompiler.verification import alignment
from qcompiler.verification.alignment import QuantizedWeights, aligned
from tests.kit import glu
from tests.kit.verification.detector import detector, pictures

Pair = tuple[Path, Path, list[dict[str, Any]], dict[str, float]]
RTX = parse_target("tensorrt-rtx")


@pytest.fixture(scope="module", params=["int8", "int4-weight", "int4-weight for onnxruntime", "int8 equalized"])
def smoothed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Float file, quantized file, the samples that the compiler compared on, and the SQNR that layers had there."""
    precision, _, target = str(request.param).partition(" for ")
    folder = tmp_path_factory.mktemp("aligned")
    equalize = precision.endswith(" equalized")
    onnx.save(detector(1000) if equalize else glu.stack(channels=glu.OUTLIERS, layers=2), folder / "f.onnx")
    recipe = Recipe(
        precision=precision.removesuffix(" equalized"),
        target=target or "tensorrt-rtx",
        smooth_quant=SmoothQuantTable(alpha="off" if equalize else 0.6),
        equalize=equalize,
        verify_samples=4,
    )
    data = pictures(16, 0) if equalize else glu.feeds(16)
    made = quantize(folder / "f.onnx", data=data, recipe=recipe, output=folder / "q.qdq.onnx")
    assert made.qdq_path is not None
    assert made.verification is not None
    assert made.verification.positions
    same = [data[index] for index in made.verification.positions]
    return folder / "f.onnx", made.qdq_path, same, {one.tensor: one.sqnr_db for one in made.verification.layers}


def test_verify_sees_of_two_files_what_the_compiler_sees(smoothed: Pair) -> None:
    first, second, same, known = smoothed
    found = verify(first, second, data=same, recipe=Recipe(verify_samples=4))
    layers = {one.tensor: one.sqnr_db for one in found.layers}
    assert found.remarks == ()
    assert len(layers.keys() & known.keys()) >= 0.9 * len(known)
    for name in layers.keys() & known.keys():
        assert layers[name] == pytest.approx(known[name], abs=0.5), name


def test_the_float_model_stays_the_same_function(smoothed: Pair) -> None:
    first, second, same, _ = smoothed
    reference = models.load(first)
    after, why = aligned(reference, models.load(second), RTX)
    assert why == ""
    (before,), (now,) = (run_once(one, same[0]).values() for one in (reference, after))
    np.testing.assert_allclose(now, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())


def test_stored_weights_are_opened_in_the_shape_that_the_product_reads(smoothed: Pair) -> None:
    first, second, _, _ = smoothed
    weights = QuantizedWeights(models.load(second).graph)
    linear = [node for node in models.load(first).graph.nodes if graphs.is_linear(node)]
    stored = {node.outputs[0].name: node.inputs[1] for node in linear if graphs.is_constant(node.inputs[1])}
    found = {name: weights[name, 1] for name in stored if (name, 1) in weights}
    assert len(found) >= 0.9 * len(stored)
    for name, values in found.items():
        own = graphs.values_of(stored[name])
        assert values.shape == own.shape
        # what is divided changes sizes of whole channels, no sign, and rounding only those of small weights
        large = np.abs(values) > 0.3 * np.abs(values).max()
        assert (np.sign(values[large]) == np.sign(own[large])).all()
    assert ("ids", 0) not in weights
    assert len(weights) == len(list(weights)) >= len(found)


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
