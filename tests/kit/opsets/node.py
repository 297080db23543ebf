"""One node as a model of an old opset, and what it is run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array = np.ndarray[Any, Any]


class Held:
    """An input that is an initializer of the model."""

    def __init__(self, values: Any, dtype: Any = None) -> None:
        self.values: NDArray[Any] = np.asarray(values, dtype)


@dataclass(frozen=True)
class Node:
    """A node and what it is run on.

    Attributes:
        op: operator.
        attrs: attributes.
        inputs: arrays that are fed, `Held` ones, None for omitted ones.
        outputs: whether each is read.
        least: the oldest opset that it is a node of, where its schema does not tell.
        most: the newest one.
    """

    op: str
    attrs: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: Sequence[bool] = (True,)
    least: int = 7
    most: int = 99

    def fits(self, opset: int) -> bool:
        """Whether it is a node of this opset."""
        try:
            schema = onnx.defs.get_schema(self.op, max_inclusive_version=opset)
        except onnx.defs.SchemaError:
            return False
        gone = (
            schema.deprecated and self.op != "GroupNormalization"
        )  # whose old form runs, though nobody should write it
        if gone or not self.least <= opset <= self.most or any(name not in schema.attributes for name in self.attrs):
            return False
        if any(one.required and name not in self.attrs for name, one in schema.attributes.items()):
            return False
        if not schema.min_input <= len(self.inputs) <= schema.max_input or len(self.outputs) > schema.max_output:
            return False
        return all(_takes(schema, index, value) for index, value in enumerate(self.inputs))

    def model(self, opset: int) -> onnx.ModelProto:
        """The node as a model of an opset."""
        names = [f"i{index}" if value is not None else "" for index, value in enumerate(self.inputs)]
        held = [
            numpy_helper.from_array(value.values, name)
            for name, value in zip(names, self.inputs, strict=True)
            if isinstance(value, Held)
        ]
        fed = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [None, *value.shape[1:]] if value.ndim else []
            )
            for name, value in self.fed().items()
        ]
        outputs = [f"o{index}" if read else "" for index, read in enumerate(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", **self.attrs)
        graph = helper.make_graph([node], "g", fed, [onnx.ValueInfoProto(name=name) for name in outputs if name], held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def fed(self) -> dict[str, Array]:
        """What it is run on."""
        return {
            f"i{index}": value
            for index, value in enumerate(self.inputs)
            if value is not None and not isinstance(value, Held)
        }

    def __str__(self) -> str:
        shapes = [
            "_" if one is None else "x".join(map(str, np.shape(one.values if isinstance(one, Held) else one)))
            for one in self.inputs
        ]
        said = ",".join(
            f"{name}={value}" for name, value in self.attrs.items() if not hasattr(value, "SerializeToString")
        )
        return f"{self.op}({' '.join(shapes)}){said}".replace(" ", "_")


def _takes(schema: Any, index: int, value: Any) -> bool:
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    if value is None:
        return bool(formal.option != onnx.defs.OpSchema.FormalParameterOption.Single)
    dtype = value.values.dtype if isinstance(value, Held) else value.dtype
    name = TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(dtype)).lower()
    return f"tensor({name})" in formal.types


def real(*shape: int, seed: int = 0, dtype: Any = np.float32, scale: float = 1.0) -> Array:
    """Normal numbers."""
    return np.asarray(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def whole(*shape: int, least: int = -4, most: int = 5, dtype: Any = np.int64, seed: int = 0) -> Array:
    """Integers."""
    return np.random.default_rng(seed).integers(least, most, shape).astype(dtype)


def axis(*values: int) -> Held:
    """A held list of int64."""
    return Held(values, np.int64)
