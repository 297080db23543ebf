from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model, to_graph

RNG = np.random.default_rng(7)
IMAGE = {"x": (2, 4, 5, 5)}


def _normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def _norm(count: int, **changes: Any) -> dict[str, Any]:
    return {
        "g": _normal(count),
        "b": _normal(count),
        "m": _normal(count),
        "v": (RNG.random(count) + 0.1).astype(np.float32),
        **changes,
    }


BN = ("BatchNormalization", "a g b m v", "y", {"epsilon": 1e-3})


@pytest.mark.parametrize("bias", [False, True])
def test_conv(bias: bool) -> None:
    weights = {"w": _normal(6, 4, 3, 3), **({"c": _normal(6)} if bias else {})}
    proto = model(("Conv", "x w c" if bias else "x w", "a"), BN, inputs=IMAGE, weights={**weights, **_norm(6)})
    graph, report = check(FoldBatchNorm(), proto, ops=["Conv"], tolerance=2e-6)
    assert report.notes[0].text == "folded into 'A'"
    assert [tensor.name for tensor in graph.nodes[0].inputs] == ["x", "w", "c" if bias else "A.bias"]


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_with_its_own_order_of_channels(groups: int) -> None:
    weights = {"w": _normal(4, 3, 3, 3), **_norm(3 * groups)}
    proto = model(
        ("ConvTranspose", "x w", "a", {"group": groups, "strides": [2, 2]}), BN, inputs=IMAGE, weights=weights
    )
    check(FoldBatchNorm(), proto, ops=["ConvTranspose"], tolerance=2e-6)


def test_depthwise_conv() -> None:
    proto = model(("Conv", "x w", "a", {"group": 4}), BN, inputs=IMAGE, weights={"w": _normal(4, 1, 3, 3), **_norm(4)})
    check(FoldBatchNorm(), proto, ops=["Conv"], tolerance=2e-6)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
def test_gemm_with_alpha_and_beta(transposed: int, bias: tuple[int, ...] | None) -> None:
    weights = {"w": _normal(6, 4) if transposed else _normal(4, 6), **_norm(6)}
    reads = "x w"
    if bias is not None:
        weights["c"] = np.asarray(_normal(*bias), np.float32)
        reads = "x w c"
    attrs = {"transB": transposed, "alpha": 0.5, "beta": 2.0}
    check(FoldBatchNorm(), model(("Gemm", reads, "a", attrs), BN, weights=weights), ops=["Gemm"], tolerance=2e-6)


def test_conv1d_inside_a_branch() -> None:
    then = graph_proto(
        [("Conv", "x w", "a"), ("BatchNormalization", "a g b m v", "t")], {}, ["t"], {"w": _normal(4, 4, 1), **_norm(4)}
    )
    other = graph_proto([("Relu", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={"x": (2, 4, 5), "flag": (bool, ())}
    )
    graph, _ = check(FoldBatchNorm(), proto, ops=["If"], tolerance=2e-6)
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Conv"]


def test_a_weight_that_another_conv_reads_stays_what_it_is_there() -> None:
    proto = model(
        ("Conv", "x w", "a"),
        BN,
        ("Conv", "x w", "z"),
        inputs=IMAGE,
        outputs=["y", "z"],
        weights={"w": _normal(6, 4, 3, 3), **_norm(6)},
    )
    graph, _ = check(FoldBatchNorm(), proto, ops=["Conv", "Conv"], tolerance=2e-6)
    assert graph.nodes[0].inputs[1].name != graph.nodes[1].inputs[1].name


def test_half_precision_is_rounded_once() -> None:
    weights = {name: np.asarray(value, np.float16) for name, value in {"w": _normal(6, 4, 3, 3), **_norm(6)}.items()}
    proto = model(("Conv", "x w", "a"), BN, inputs={"x": (np.float16, (2, 4, 5, 5))}, weights=weights)
    graph, _ = check(FoldBatchNorm(), proto, ops=["Conv"], tolerance=5e-3)
    assert graph.nodes[0].inputs[1].values.dtype == np.float16
    assert graph.nodes[0].inputs[2].values.dtype == np.float16


@pytest.mark.parametrize(
    ("nodes", "weights", "outputs", "why"),
    [
        pytest.param([("Relu", "x", "a"), BN], _norm(4), ["y"], "it follows Relu", id="behind an activation"),
        pytest.param(
            [("BatchNormalization", "x g b m v", "y")], _norm(4), ["y"], "it follows no node", id="at the input"
        ),
        pytest.param(
            [("Conv", "x w", "a"), BN, ("Relu", "a", "z")],
            {"w": _normal(6, 4, 3, 3), **_norm(6)},
            ["y", "z"],
            "also read by other nodes",
            id="the Conv is read elsewhere too",
        ),
        pytest.param(
            [("Conv", "x w", "a"), BN],
            {"w": _normal(6, 4, 3, 3), **_norm(6)},
            ["y", "a"],
            "is a graph output",
            id="the Conv is an output",
        ),
        pytest.param(
            [("Relu", "u", "w"), ("Conv", "x w", "a"), BN],
            {"u": _normal(6, 4, 3, 3), **_norm(6)},
            ["y"],
            "the weight of 'A' is not a float constant",
            id="a computed weight",
        ),
        pytest.param(
            [("Relu", "u", "c"), ("Conv", "x w c", "a"), BN],
            {"u": _normal(6), "w": _normal(6, 4, 3, 3), **_norm(6)},
            ["y"],
            "the bias of 'A' is not constant",
            id="a computed bias",
        ),
        pytest.param(
            [("Abs", "s", "v"), ("Conv", "x w", "a"), BN],
            {"s": _normal(6), "w": _normal(6, 4, 3, 3), **{k: v for k, v in _norm(6).items() if k != "v"}},
            ["y"],
            "its parameters are not constant",
            id="a computed variance",
        ),
        pytest.param(
            [("Conv", "x w", "a"), BN],
            {"w": _normal(6, 4, 3, 3), **_norm(6, v=np.full(6, -1, np.float32))},
            ["y"],
            "a variance is negative",
            id="a negative variance",
        ),
        pytest.param(
            [("Conv", "x w", "a"), BN],
            {"w": _normal(6, 4, 3, 3), **_norm(6, g=np.full(6, np.inf, np.float32))},
            ["y"],
            "not finite",
            id="an infinite scale",
        ),
        pytest.param(
            [("Conv", "x w", "a"), BN],
            {"w": np.full((6, 4, 3, 3), 1e38, np.float32), **_norm(6, g=np.full(6, 1e4, np.float32))},
            ["y"],
            "would leave the range of float32",
            id="a product beyond the range",
        ),
    ],
)
def test_left_alone(nodes: list[Any], weights: dict[str, Any], outputs: list[str], why: str) -> None:
    check_skipped(FoldBatchNorm(), model(*nodes, inputs=IMAGE, outputs=outputs, weights=weights), why)


def test_a_gemm_whose_bias_differs_from_row_to_row_is_left_alone() -> None:
    proto = model(("Gemm", "x w c", "a"), BN, weights={"w": _normal(4, 6), "c": _normal(2, 6), **_norm(6)})
    check_skipped(FoldBatchNorm(), proto, "has not one value per channel")


def test_training_mode_is_left_alone() -> None:
    graph = to_graph(model(("Conv", "x w", "a"), BN, inputs=IMAGE, weights={"w": _normal(6, 4, 3, 3), **_norm(6)}))
    graph.nodes[1].attrs["training_mode"] = 1
    report = FoldBatchNorm()(graph)
    assert [note.text for note in report.notes] == ["it is in training mode"]


def test_a_model_without_batch_norm_is_left_alone() -> None:
    check_untouched(FoldBatchNorm(), model(("Conv", "x w", "y"), inputs=IMAGE, weights={"w": _normal(6, 4, 3, 3)}))
