"""ONNX Runtime's normalisations, written out and held against its own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from qcompiler.runtime.session import Session
from tests.kit.rewrite import check_skipped, check_written, model, to_graph

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {"g": draw(8), "beta": draw(8), "b": draw(8)}


@pytest.mark.parametrize("attrs", [{}, {"epsilon": 1e-3}])
@pytest.mark.parametrize("writes", ["y", "y _ _ sum"])
@pytest.mark.parametrize("reads", ["x s g", "x s g beta", "x s g beta b", "x s g _ b"])
def test_a_sum_is_normalised(reads: str, writes: str, attrs: dict[str, Any]) -> None:
    proto = model(
        ("SkipLayerNormalization", reads, writes, attrs, MICROSOFT),
        inputs={"x": ("batch", "rows", 8), "s": ("batch", "rows", 8)},
        weights=WEIGHTS, outputs=[one for one in writes.split() if one != "_"], opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_one_sum_for_all_texts() -> None:
    proto = model(
        ("SkipLayerNormalization", "x s g", "y", {}, MICROSOFT),
        inputs={"x": ("batch", 3, 8), "s": (3, 8)}, weights=WEIGHTS, opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_a_bias_stands_behind_its_product() -> None:
    proto = model(
        ("MatMul", "x w", "p"), ("SkipLayerNormalization", "x p g beta b", "y", {}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8)}, weights={**WEIGHTS, "w": draw(8, 8)}, opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto)
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Add", "LayerNormalization"]
    assert graph.nodes[1].inputs[0] is graph.nodes[0].outputs[0]


@pytest.mark.parametrize("shape", [("batch", "rows", 8), ("tokens", 8)])
@pytest.mark.parametrize("reads", ["x x g", "x x g b"])
def test_a_sum_is_divided_by_its_root_mean_square(reads: str, shape: tuple[Any, ...]) -> None:
    proto = model(
        ("SkipSimplifiedLayerNormalization", reads, "y _ _ sum", {"epsilon": 1e-4}, MICROSOFT),
        inputs={"x": shape}, weights=WEIGHTS, outputs=("y", "sum"), opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_the_one_that_optimisers_put_into_the_standard_domain() -> None:
    proto = model(
        ("SimplifiedLayerNormalization", "x g", "y", {"axis": -1, "epsilon": 1e-6}),
        inputs={"x": ("batch", "rows", 8)}, weights=WEIGHTS, opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto)
    assert "SimplifiedLayerNormalization" not in [node.op for node in graph.nodes]


@pytest.mark.parametrize("reads", ["i k w p s g b m", "i k w p s g b", "i _ w p _ g b", "i _ w p _ g b _ q"])
def test_words_are_embedded(reads: str) -> None:
    ids = (np.int32, ("batch", "rows"))
    found = {"i": ids, "k": ids, "m": ids, "q": ids}
    proto = model(
        ("EmbedLayerNormalization", reads, "y lengths sum", {}, MICROSOFT),
        inputs={name: found[name] for name in reads.split() if name in found},
        weights={"w": draw(9, 8), "p": draw(16, 8), "s": draw(2, 8), "g": draw(8), "b": draw(8)},
        outputs=("y", "lengths", "sum"), opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def _groups(x: Any, gamma: Any, beta: Any) -> Any:
    """Two groups of channels that come first."""
    apart = x.reshape(x.shape[0], 2, -1)
    normal = (apart - apart.mean(-1, keepdims=True)) / np.sqrt(apart.var(-1, keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]


@pytest.mark.parametrize("skip", ["", "matrix", "image"])
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_groups_of_channels_are_normalised(last: int, activation: int, skip: str) -> None:
    """On GPUs only, so held against what the operator is defined as."""
    x, gamma, beta = draw(2, 4, 3, 5), draw(4), draw(4)
    added = draw(2, 4, 3, 5) if skip == "image" else draw(2, 4, 1, 1)
    right = _groups(x + added if skip else x, gamma, beta)
    right = right / (1 + np.exp(-right)) if activation else right
    turn = (lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1))) if last else (lambda a: a)
    feeds = {"x": turn(x)}
    if skip:
        feeds["s"] = added.reshape(2, 4) if skip == "matrix" else turn(added)
    attrs = {"groups": 2, "activation": activation, "channels_last": last}
    op = ("SkipGroupNorm", "x g b s", "y", attrs, MICROSOFT) if skip else ("GroupNorm", "x g b", "y", attrs, MICROSOFT)
    inputs = {name: value.shape for name, value in feeds.items()}
    graph = to_graph(model(op, inputs=inputs, weights={"g": gamma, "b": beta}, opset=21))
    assert WriteOutFused()(graph).changed == 1
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], turn(right), atol=2e-5)


def test_statistics_for_training_stay() -> None:
    proto = model(
        ("SkipLayerNormalization", "x x g", "y mean", {}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8)}, weights=WEIGHTS, outputs=("y", "mean"), opset=21,
    )  # fmt: skip
    check_skipped(WriteOutFused(), proto, "gives the output 'mean'")
