"""ONNX Runtime's products, written out and held against its own kernels."""

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


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
@pytest.mark.parametrize("attrs", [{}, {"transA": 1}, {"transB": 1, "alpha": 0.5}, {"transA": 1, "transB": 1}])
def test_operands_are_transposed_and_the_product_scaled(op: str, attrs: dict[str, Any]) -> None:
    check_written(
        WriteOutFused(), model((op, "a b", "y", attrs, MICROSOFT), inputs={"a": (2, 4, 4), "b": (2, 4, 4)}, opset=21)
    )


@pytest.mark.parametrize(
    "attrs", [{"transBatchA": 1}, {"transBatchA": 1, "transA": 1}, {"transBatchB": 1}, {"transBatchB": 1, "transB": 1}]
)
@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 3, 3, 3)])
def test_the_first_axis_is_moved_behind_the_others(attrs: dict[str, Any], shape: tuple[int, ...]) -> None:
    proto = model(("FusedMatMul", "a b", "y", attrs, MICROSOFT), inputs={"a": shape, "b": shape}, opset=21)
    check_written(WriteOutFused(), proto)


def test_a_constant_is_transposed_here() -> None:
    weight = draw(5, 8)
    proto = model(
        ("FusedMatMul", "x w", "y", {"transB": 1}, MICROSOFT),
        inputs={"x": ("batch", "rows", 8)}, weights={"w": weight}, opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto)
    (product,) = graph.nodes
    np.testing.assert_array_equal(product.inputs[1].values, weight.T)


def test_the_rank_behind_another_fused_operator_is_found() -> None:
    proto = model(
        ("QuickGelu", "x", "h", {}, MICROSOFT), ("FusedMatMul", "h h", "y", {"transA": 1}, MICROSOFT),
        inputs={"x": ("batch", 4, 4)}, opset=21,
    )  # fmt: skip
    graph = check_written(WriteOutFused(), proto)
    assert [node.op for node in graph.nodes][-2:] == ["Transpose", "MatMul"]


def test_an_operand_of_unknown_rank_stays() -> None:
    proto = model(("FusedMatMul", "a b", "y", {"transA": 1}, MICROSOFT), inputs={"a": (4, 4), "b": (4, 4)}, opset=21)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    check_skipped(WriteOutFused(), proto, "whose rank is not known")


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("Softplus", {}), ("Softsign", {}), ("Elu", {"alpha": 0.5}),
        ("LeakyRelu", {"alpha": 0.2}), ("ThresholdedRelu", {"alpha": 0.5}),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.4}), ("Selu", {"alpha": 1.6, "gamma": 1.1}),
    ],
)  # fmt: skip
def test_a_gemm_ends_with_an_activation(kind: str, parameters: dict[str, float]) -> None:
    attrs = {"activation": kind, "transB": 1, "alpha": 0.5, "beta": 2.0}
    attrs |= {f"activation_{name}": value for name, value in parameters.items()}
    proto = model(
        ("FusedGemm", "a w c", "y", attrs, MICROSOFT),
        inputs={"a": ("rows", 8)}, weights={"w": draw(5, 8), "c": draw(5)}, opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


@pytest.mark.parametrize("reads", ["x w", "x w b", "x w b z"])
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("Relu", []),
        ("Tanh", []),
        ("Sigmoid", []),
        ("LeakyRelu", [0.2]),
        ("Clip", [-1.0, 2.0]),
        ("HardSigmoid", [0.2, 0.4]),
    ],
)
def test_a_convolution_ends_with_a_sum_and_an_activation(kind: str, parameters: list[float], reads: str) -> None:
    attrs = {"activation": kind, "pads": [1, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}
    attrs |= {"activation_params": parameters} if parameters else {}
    inputs = {"x": ("batch", 4, 6, 6)} | ({"z": ("batch", 3, 3, 3)} if "z" in reads else {})
    proto = model(
        ("FusedConv", reads, "y", attrs, MICROSOFT),
        inputs=inputs, weights={"w": draw(3, 4, 3, 3), "b": draw(3)}, opset=21,
    )  # fmt: skip
    check_written(WriteOutFused(), proto)


def test_channels_at_the_end() -> None:
    """On GPUs only, so held against ONNX's own convolution."""
    weights, x = {"w": draw(3, 4, 3, 3), "b": draw(3)}, draw(2, 6, 6, 4)
    ours = to_graph(
        model(
            ("NhwcFusedConv", "x w b", "y", {"activation": "Relu", "pads": [1, 1, 1, 1]}, MICROSOFT),
            inputs={"x": (2, 6, 6, 4)}, weights=weights, opset=21,
        )
    )  # fmt: skip
    theirs = model(
        ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}), ("Relu", "c", "y"),
        inputs={"x": (2, 4, 6, 6)}, weights=weights, opset=21,
    )  # fmt: skip
    assert WriteOutFused()(ours).changed == 1
    right = Session(to_graph(theirs)).run({"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})["y"]
    np.testing.assert_allclose(Session(ours).run({"x": x})["y"], right.transpose(0, 2, 3, 1), atol=1e-5)


def test_an_unknown_activation_stays() -> None:
    proto = model(
        ("FusedGemm", "a w", "y", {"activation": "Mystery"}, MICROSOFT),
        inputs={"a": ("rows", 8)}, weights={"w": draw(8, 5)}, opset=21,
    )  # fmt: skip
    check_skipped(WriteOutFused(), proto, "has activation=Mystery")
