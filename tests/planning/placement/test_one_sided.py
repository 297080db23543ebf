"""Which activations are shifted: on one side of zero, of a kernel of their own, read by products with a bias."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.planning.placement import candidates, one_sided
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.statistics.observe import histograms
from qcompiler.target import parse_target
from tests.kit.rewrite import Spec, model

RNG = np.random.default_rng(3)
LAYER: tuple[Spec, ...] = (("MatMul", "s w", "a"), ("Add", "a b", "y"))


def shifted(folder: Path, nodes: Sequence[Spec], outputs: Sequence[str] = ("y",)) -> dict[str, bool]:
    used = " ".join(str(one[1]) for one in nodes).split()
    weights: dict[str, Any] = {
        "w": RNG.standard_normal((24, 16)).astype(np.float32),
        "u": RNG.standard_normal((24, 24)).astype(np.float32),
        "b": RNG.standard_normal(16).astype(np.float32),
        "g": np.ones(24, np.float32),
    }
    weights = {name: value for name, value in weights.items() if name in used}
    onnx.save(model(*nodes, inputs={"x": (32, 24)}, outputs=outputs, weights=weights, opset=21), folder / "m.onnx")
    read = models.load(folder / "m.onnx")
    layers = Candidates(*candidates.find_candidates(read.graph, parse_target("tensorrt-rtx")))
    feeds = [{"x": (3 * RNG.standard_normal((32, 24))).astype(np.float32)}]
    seen = histograms(read, list(layers.by_activation), feeds)
    found = one_sided.one_sided(read.graph, layers, seen)
    assert [one.node for one in found.found] == [one.node for one in layers.found]
    assert not any(one.shifted for one in layers.found)
    return {one.activation: one.shifted for one in found.found}


@pytest.mark.parametrize("op", ["Softplus", "Gelu", "Sigmoid", "Abs"])
def test_what_lies_to_one_side_in_front_of_a_biased_product_is_shifted(tmp_path: Path, op: str) -> None:
    assert shifted(tmp_path, [(op, "x", "s"), *LAYER]) == {"s": True}


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([("Tanh", "x", "s"), *LAYER], ("y",)),  # on both sides
        ([("Softplus", "x", "s"), ("MatMul", "s w", "y")], ("y",)),  # no bias
        ([("Softplus", "x", "s"), ("MatMul", "s w", "a"), ("Add", "a b", "y")], ("y", "a")),  # the bias is not for all
        ([("Softplus", "x", "s"), *LAYER, ("Neg", "s", "z")], ("y", "z")),  # somebody reads it as it was
    ],
)
def test_what_gains_nothing_or_has_no_bias_stays(tmp_path: Path, nodes: Sequence[Spec], outputs: Sequence[str]) -> None:
    assert shifted(tmp_path, nodes, outputs)["s"] is False


def test_what_a_layer_writes_itself_stays_in_its_kernel(tmp_path: Path) -> None:
    nodes = [("MatMul", "x u", "m"), ("Relu", "m", "s"), *LAYER]
    assert shifted(tmp_path, nodes)["s"] is False


def test_the_gain_is_what_the_grid_wastes(tmp_path: Path) -> None:
    onnx.save(
        model(("Abs", "x", "y"), ("Neg", "y", "z"), inputs={"x": (32, 24)}, outputs=("y", "z")), tmp_path / "m.onnx"
    )
    read = models.load(tmp_path / "m.onnx")
    feeds = [{"x": np.linspace(-4, 4, 32 * 24, dtype=np.float32).reshape(32, 24)}]
    seen = histograms(read, ["x", "y", "z"], feeds)
    assert one_sided.gain_db(seen["x"]) == pytest.approx(0, abs=0.01)
    assert one_sided.gain_db(seen["y"]) == pytest.approx(6.02, abs=0.1)
    assert one_sided.gain_db(seen["z"]) == pytest.approx(6.02, abs=0.1)
