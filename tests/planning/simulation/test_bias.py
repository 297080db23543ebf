"""Bias correction: means are those of the data, and what quantization moves on average is given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.planning.placement import candidates
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.target import parse_target

GROUPS = 2


@pytest.fixture
def conv(tmp_path: Path) -> models.Model:
    """A grouped 3x3 convolution whose few weights round badly."""
    weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=GROUPS)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


def _shift(model: models.Model, ranges: list[float], feeds: list[Feeds]) -> np.ndarray:
    (candidate,), _ = candidates.find_candidates(model.graph, parse_target("tensorrt-rtx"))
    return Shifts(model, {"x": [candidate]}, {"x": ranges}, feeds).of(candidate, ranges[0])


@pytest.fixture
def feeds() -> list[Feeds]:
    """Positive activations with one channel far above the range."""
    random = np.random.default_rng(1)
    x = random.uniform(0, 1, (3, 1, 4, 8, 8)).astype(np.float32)
    x[:, :, 1] += 3
    return [{"x": one} for one in x]


def test_the_correction_is_the_mean_of_what_quantization_moves(conv: models.Model, feeds: list[Feeds]) -> None:
    weight = np.asarray(next(t for t in conv.graph.tensors().values() if t.name == "w").values)
    stored, scales = quantize_weight(weight, 0)
    x = np.concatenate([feed["x"] for feed in feeds])
    clipped = np.clip(np.rint(x / np.float32(1.5 / 127)), -128, 127) * (1.5 / 127)
    expected = []
    for m in range(6):
        channels = slice(0, 2) if m < 3 else slice(2, 4)
        exact = x[:, channels].mean((0, 2, 3)) @ weight[m].sum((1, 2))
        moved = clipped[:, channels].mean((0, 2, 3)) @ (stored[m].astype(float) * scales[m]).sum((1, 2))
        expected.append(exact - moved)
    np.testing.assert_allclose(_shift(conv, [1.5], feeds), expected, rtol=1e-4)


def test_calibrators_that_agree_do_not_count_twice(conv: models.Model, feeds: list[Feeds]) -> None:
    np.testing.assert_array_equal(_shift(conv, [1.5, 1.5, 2.0], feeds), _shift(conv, [1.5], feeds))
