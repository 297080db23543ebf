"""The generated decoder has the outliers that it promises, and they do not change what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.kit import glu


def run(proto: onnx.ModelProto, *names: str) -> list[list[Any]]:
    """The named tensors, by feed."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(list(names), feeds) for feeds in glu.feeds(4)]


@pytest.mark.parametrize("rope", [True, False])
def test_planted_outliers_do_not_change_the_function(rope: bool) -> None:
    plain = run(glu.stack(rope=rope), "logits")
    planted = run(glu.stack(rope=rope, channels=glu.OUTLIERS, spiking=glu.SPIKING), "logits")
    largest = max(np.abs(one).max() for (one,) in plain)
    assert max(np.abs(a - b).max() for (a,), (b,) in zip(plain, planted, strict=True)) < 1e-4 * largest


@pytest.mark.parametrize("norm", ["l0.n1", "l3.n2", "last"])
def test_a_few_channels_of_each_norm_are_outliers(norm: str) -> None:
    (usual,), (planted,) = (run(glu.stack(channels=channels), f"{norm}.out")[0] for channels in ((), glu.OUTLIERS))
    ratio = np.abs(planted).max((0, 1)) / np.abs(usual).max((0, 1))
    assert ratio[: len(glu.OUTLIERS)] == pytest.approx(glu.OUTLIERS, rel=1e-3)
    assert ratio[len(glu.OUTLIERS) :] == pytest.approx(1, rel=1e-3)


def test_one_token_spikes_where_it_was_planted_and_nowhere_else() -> None:
    names = [f"l{layer}.glu" for layer in range(glu.LAYERS)]
    for values in run(glu.stack(spiking=glu.SPIKING), *names):
        for layer, value in enumerate(values):
            tokens = np.abs(value[0]).max(-1)
            assert (tokens[0] > 200 * np.median(tokens)) == (layer in glu.SPIKING)
            assert tokens[1:].max() < 5 * np.median(tokens)
