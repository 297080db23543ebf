"""Models that come quantized, legal but for one thing, for the tests of the legality pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.engines import listing
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import EngineError
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.target import Target, parse_target
from tests.kit.rewrite import Spec, model, to_graph, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


RTX = parse_target("tensorrt-rtx:sm89")


def rng() -> np.random.Generator:
    """The same numbers whatever ran before."""
    return np.random.default_rng(3)


W8 = rng().integers(-127, 128, (32, 32)).astype(np.int8)
ZERO = np.int8(0)
CHANNEL_SCALES = np.linspace(1e-3, 3e-3, 32).astype(np.float32)


def f32(value: Any) -> Array:
    return np.asarray(value, np.float32)


def product(
    *,
    scale: Any = 0.05,
    zero: Any = ZERO,
    weight: Any = W8,
    weight_scale: Any = CHANNEL_SCALES,
    weight_zero: Any = None,
    axis: int | None = 1,
    block: int = 0,
    opset: int = 23,
) -> onnx.ModelProto:
    """x → Q → DQ → MatMul(DQ(w8)) → y, with whatever is to be wrong about it; `None` omits a zero point."""
    scales = np.asarray(weight_scale)
    held = {"s": scale if isinstance(scale, np.ndarray | np.generic) else f32(scale), "w8": weight, "ws": scales}
    if zero is not None:
        held["z"] = zero
    held["wz"] = np.zeros(scales.shape, np.asarray(weight).dtype) if weight_zero is None else weight_zero
    attrs = {} if axis is None else {"axis": axis}
    nodes: tuple[Spec, ...] = (
        ("QuantizeLinear", "x s z" if zero is not None else "x s", "q"),
        ("DequantizeLinear", "q s z" if zero is not None else "q s", "d"),
        ("DequantizeLinear", "w8 ws wz", "w", attrs | ({"block_size": block} if block else {})),
        ("MatMul", "d w", "y"),
    )
    return newer(model(*nodes, inputs={"x": (64, 32)}, weights=held, opset=opset))


def newer(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.ir_version = 11
    return proto


def giving(proto: onnx.ModelProto, *shape: int) -> onnx.ModelProto:
    """The model with a Cast and a Reshape before `y`, which tell what inference misses behind foreign operators."""
    for node in proto.graph.node:
        node.output[:] = ["raw" if name == "y" else name for name in node.output]
    proto.graph.node.append(onnx.helper.make_node("Cast", ["raw"], ["cast"], "CAST", to=onnx.TensorProto.FLOAT))
    proto.graph.node.append(onnx.helper.make_node("Reshape", ["cast", "shape"], ["y"], "RESHAPE"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), "shape"))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape))
    return newer(proto)


def op_named(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def refused(proto: onnx.ModelProto, *words: str, target: Target = RTX) -> None:
    with pytest.raises(EngineError) as caught:
        Legalize(target)(to_graph(proto))
    text = str(caught.value)
    assert caught.value.exit_code == 6
    assert all(word in text for word in words), text
    assert text.startswith("node '")
    assert ": " in text


def built(graph: gs.Graph, folder: Path, node: str) -> tuple[str, ...]:
    """Operand types of the kernel that TensorRT-RTX made of a node."""
    (folder / "m.onnx").write_bytes(whole(graph).SerializeToString())
    TensorRTRTX(("sm89",)).build(folder / "m.onnx", folder / "m.engine")
    kernels = [op for one in listing.read(folder / "m.engine") for op in one.ops if node in op.nodes]
    assert kernels, f"'{node}' is not listed"
    return kernels[0].input_types
