"""Inputs of a model and what is fed to them: names, types, shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Shape = tuple[int | str | None, ...] | None
Stored = Mapping[str, np.dtype[Any]]  # types that inputs have in the source where the graph has float32
Inputs = Mapping[str, tuple[np.dtype[Any] | None, Shape]]  # no type: a sequence or optional, passed on unseen


class InputShapes(NamedTuple):
    """Shapes of one input for an optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def in_float32(inputs: Inputs) -> tuple[Inputs, Stored]:
    """Inputs of a file as float32 where they are floats of another width, and the types that these have."""
    stored = {
        name: dtype
        for name, (dtype, _) in inputs.items()
        if dtype is not None and dtype.name in ("float16", "bfloat16", "float64")
    }
    wide = np.dtype(np.float32)
    return {name: (wide if name in stored else dtype, shape) for name, (dtype, shape) in inputs.items()}, stored


class FixedInputs(dict[str, tuple["np.dtype[Any] | None", Shape]]):
    """Inputs beside some that are constants of the model: `fixed` are their values, which data may go on giving."""

    def __init__(self, inputs: Inputs, fixed: Mapping[str, Array]) -> None:
        super().__init__(inputs)
        self.fixed = fixed


def fixed_of(inputs: Inputs) -> Mapping[str, Array]:
    """The values of what was an input and is a constant now."""
    return inputs.fixed if isinstance(inputs, FixedInputs) else {}


def inputs_of(graph: gs.Graph) -> Inputs:
    """Element type and shape of each input by name: int for a fixed size, text or None for a free one."""
    found = {tensor.name: (graphs.dtype_of(tensor), graphs.shape_of(tensor)) for tensor in graph.inputs}
    return FixedInputs(found, vars(graph)["fixed"]) if vars(graph).get("fixed") else found
