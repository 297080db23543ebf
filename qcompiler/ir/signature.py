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
Inputs = Mapping[str, tuple[np.dtype[Any] | None, Shape]]  # no type: a sequence or optional, passed on unseen


class InputShapes(NamedTuple):
    """Shapes of one input for an optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def inputs_of(graph: gs.Graph) -> Inputs:
    """Element type and shape of each input by name: int for a fixed size, text or None for a free one."""
    return {tensor.name: (graphs.dtype_of(tensor), graphs.shape_of(tensor)) for tensor in graph.inputs}
