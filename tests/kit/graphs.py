"""Small quantized graphs, right ones and wrong ones, written with onnx.helper alone: nothing of ours is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Builder:
    """Collects nodes and constants of one graph; every node gets a name."""

    def __init__(self, opset: int = 23, seed: int = 7) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT16) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: list[int | str] | None = None, dtype: int = TensorProto.FLOAT16) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, value: Array) -> str:
        if value.dtype == ml_dtypes.float8_e4m3fn:
            tensor = helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, value.shape, value.tobytes(), raw=True)
        else:
            tensor = numpy_helper.from_array(value, name)
        self.constants.append(tensor)
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantized(self, x: str, name: str, scale: float | Array = 0.05, zero: Array | None = None, **how: Any) -> str:
        """FP16 -> FP32 -> Q -> DQ -> FP16 with FP32 scales, as this compiler writes it."""
        zero = np.zeros(np.shape(scale), np.int8) if zero is None else zero
        s = self.constant(f"{name}_s", np.asarray(scale, np.float32))
        z = self.constant(f"{name}_z", zero)
        x = self.node("Cast", [x], f"{name}_cast", to=TensorProto.FLOAT)
        x = self.node("QuantizeLinear", [x, s, z], f"{name}_q", **how)
        return self.node("DequantizeLinear", [x, s, z], f"{name}_dq", output_dtype=TensorProto.FLOAT16, **how)

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        axis: int | None,
        dtype: Any = np.int8,
        scale_dtype: Any = np.float32,
        **how: Any,
    ) -> str:
        """A stored low-precision weight -> DQ -> FP16; one scale for each index of `axis`, or one for all."""
        values = self.random.integers(-127, 128, shape).astype(np.float32)
        stored = values.astype(dtype)
        count = () if axis is None else (shape[axis],)
        scales = (self.random.uniform(0.5, 1.5, count) * 0.001).astype(scale_dtype)
        return self.dequantized(name, stored, scales, **({} if axis is None else {"axis": axis}), **how)

    def dequantized(self, name: str, stored: Array, scales: Array, **how: Any) -> str:
        w = self.constant(name, stored)
        s = self.constant(f"{name}_s", scales)
        z = self.constant(f"{name}_z", np.zeros(scales.shape, stored.dtype))
        if scales.dtype != np.float16:
            how["output_dtype"] = TensorProto.FLOAT16
        return self.node("DequantizeLinear", [w, s, z], f"{name}_dq", **how)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "toy", self.inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=11)

    def save(self, path: Path, *, external: bool = False) -> Path:
        onnx.save(self.model(), path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=64)
        return path


def matmul(batch: int | str = 64, k: int = 128, n: int = 96, axis: int | None = 1) -> Builder:
    """x[batch, k] quantized per tensor times W[k, n] with scales along `axis`, then Relu. Node `mm`."""
    b = Builder()
    x = b.quantized(b.input("x", [batch, k]), "a")
    y = b.node("MatMul", [x, b.weight("w", (k, n), axis)], "mm")
    b.output(b.node("Relu", [y], "relu"))
    return b


def conv(axis: int | None = 0, op: str = "Conv") -> Builder:
    """x[1, 32, 16, 16] quantized per tensor, 3x3 convolution `conv` with scales along `axis`, bias, Relu."""
    b = Builder()
    x = b.quantized(b.input("x", [1, 32, 16, 16]), "a")
    bias = b.constant("bias", np.linspace(-1, 1, 32).astype(np.float16))
    y = b.node(op, [x, b.weight("w", (32, 32, 3, 3), axis), bias], "conv", pads=[1, 1, 1, 1])
    b.output(b.node("Relu", [y], "relu"))
    return b


def half_scales(conv: bool = False, dtype: Any = np.int8) -> Builder:
    """Per-channel weights and FP16 scales: what the compiler stores before it rescales is half. Node `mm`."""
    b = Builder()
    x = b.input("x", [1, 128, 8, 8] if conv else [64, 128])
    s = b.constant("a_s", np.asarray(0.05, np.float16))
    z = b.constant("a_z", np.zeros((), dtype))
    q = b.node("QuantizeLinear", [x, s, z], "a_q")
    x = b.node("DequantizeLinear", [q, s, z], "a_dq")
    w = b.weight("w", (96, 128, 1, 1) if conv else (128, 96), 0 if conv else 1, dtype, scale_dtype=np.float16)
    b.output(b.node("Conv" if conv else "MatMul", [x, w], "mm"))
    return b


def channel_activations() -> Builder:
    """Activations with one scale per column: becomes float without a word. Node `mm`."""
    b = Builder()
    x = b.quantized(b.input("x", [64, 128]), "a", np.linspace(0.01, 0.1, 128), axis=1)
    b.output(b.node("MatMul", [x, b.weight("w", (128, 96), 1)], "mm"))
    return b


def weight_only(rows: int = 64) -> Builder:
    """Float activations times a stored INT8 weight. Node `mm`."""
    b = Builder()
    b.output(b.node("MatMul", [b.input("x", [rows, 128]), b.weight("w", (128, 96), 1)], "mm"))
    return b


def blocked() -> Builder:
    """Quantized activations times a weight with one scale per 32 rows: the compiler gets it wrong. Node `mm`."""
    b = Builder()
    x = b.quantized(b.input("x", [64, 128]), "a")
    values = b.random.integers(-127, 128, (128, 96)).astype(np.int8)
    w = b.dequantized("w", values, np.full((4, 96), 0.001, np.float32), axis=0, block_size=32)
    b.output(b.node("MatMul", [x, w], "mm"))
    return b


def unsigned() -> Builder:
    """Activations in UINT8, which the library reads as INT8. Nodes `a_q`, `a_dq`, `mm`."""
    b = Builder()
    x = b.quantized(b.input("x", [64, 128]), "a", zero=np.asarray(0, np.uint8))
    b.output(b.node("MatMul", [x, b.weight("w", (128, 96), 1)], "mm"))
    return b


def shifted() -> Builder:
    """Activations with zero point 3, which the parser refuses. Nodes `a_q`, `a_dq`, `mm`."""
    b = Builder()
    x = b.quantized(b.input("x", [64, 128]), "a", zero=np.asarray(3, np.int8))
    b.output(b.node("MatMul", [x, b.weight("w", (128, 96), 1)], "mm"))
    return b


def fp8(axis: int | None = None) -> Builder:
    """FP8 activations and weights, FP32 scales. Node `mm`."""
    b = Builder()
    e4m3 = ml_dtypes.float8_e4m3fn
    x = b.quantized(b.input("x", [64, 128]), "a", zero=np.zeros((), e4m3))
    b.output(b.node("MatMul", [x, b.weight("w", (128, 96), axis, dtype=e4m3)], "mm"))
    return b


def fp8_siblings(*factors: float) -> Builder:
    """One FP8 tensor feeds three products whose weights have a scale each, so related. Nodes `q`, `k`, `v`."""
    b = Builder()
    e4m3 = ml_dtypes.float8_e4m3fn
    x = b.quantized(b.input("x", [64, 128]), "a", zero=np.zeros((), e4m3))
    for name, factor in zip("qkv", factors, strict=True):
        stored = b.random.uniform(-448, 448, (128, 128)).astype(e4m3)
        w = b.dequantized(f"w_{name}", stored, np.asarray(0.001 * factor, np.float32))
        b.output(b.node("Relu", [b.node("MatMul", [x, w], name)], f"{name}_relu"))
    return b


def fp8_conv(axis: int | None) -> Builder:
    """3x3 convolution `conv` of FP8 activations and weights with FP32 scales, bias, Relu."""
    b = Builder()
    e4m3 = ml_dtypes.float8_e4m3fn
    x = b.quantized(b.input("x", [1, 32, 16, 16]), "a", zero=np.zeros((), e4m3))
    bias = b.constant("bias", np.linspace(-1, 1, 32).astype(np.float16))
    y = b.node("Conv", [x, b.weight("w", (32, 32, 3, 3), axis, dtype=e4m3), bias], "conv", pads=[1, 1, 1, 1])
    b.output(b.node("Relu", [y], "relu"))
    return b


def qkv() -> Builder:
    """One quantized tensor feeds three products, which are fused side by side. Nodes `q`, `k`, `v`."""
    b = Builder()
    x = b.quantized(b.input("x", ["batch", 128]), "a")
    for name in ("q", "k", "v"):
        b.output(b.node("MatMul", [x, b.weight(f"w_{name}", (128, 128), 1)], name))
    return b


def twins() -> Builder:
    """Two identical products, which the library computes once. Nodes `first`, `second`."""
    b = Builder()
    x = b.quantized(b.input("x", [64, 128]), "a")
    w = b.weight("w", (128, 128), 1)
    first = b.node("MatMul", [x, w], "first")
    second = b.node("MatMul", [x, w], "second")
    b.output(b.node("Relu", [first], "relu"))
    b.output(b.node("Sigmoid", [second], "sigmoid"))
    return b


def branches() -> Builder:
    """A quantized product in each branch of an If, with its own Q/DQ. Nodes `then_mm`, `else_mm`."""
    b = Builder()
    x = b.input("x", [64, 128])
    condition = b.input("condition", [], TensorProto.BOOL)
    bodies = {}
    for name in ("then", "else"):
        inner = Builder(seed=len(name) + ord(name[0]))
        own = inner.quantized(inner.node("Relu", [x], f"{name}_relu"), f"{name}_a")
        inner.output(inner.node("MatMul", [own, inner.weight(f"{name}_w", (128, 96), 1)], f"{name}_mm"), [64, 96])
        bodies[f"{name}_branch"] = helper.make_graph(inner.nodes, name, [], inner.outputs, inner.constants)
    b.output(b.node("If", [condition], "choice", **bodies))
    return b
