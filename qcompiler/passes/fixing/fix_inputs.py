"""An input that has one value in deployment becomes a constant, and is an input no more.

If(use_cache_branch){…}  ⇒  If(True){…}, which `FoldIfs` replaces by its branch
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import UsageError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.gs_classes import Graph
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Note, Pass
from qcompiler.support.suggest import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = {"b": "b", "i": "bi", "u": "bi", "f": "bif", "V": "bif"}  # which kinds of numbers an input may be given


@dataclass(frozen=True)
class FixInputs(Pass):
    """Make inputs constants.

    The graph remembers their values, so that data which goes on giving them can be checked.

    Attributes:
        values: by input name: numbers, or arrays that have its shape; one number fills an input of fixed shape.

    Raises:
        UsageError: there is no such input, or a value does not fit it; the message names the input.
    """

    values: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per input."""
        inputs = {tensor.name: tensor for tensor in graph.inputs}
        for name in self.values:
            if name not in inputs:
                raise UsageError(f"--fix-input names '{name}', which is no input: {did_you_mean(name, inputs)}")
        names = Names(graph)
        made = {name: fitted(np.asarray(value), inputs[name]) for name, value in self.values.items()}
        for name, value in made.items():
            _replace(graph, inputs[name], value, names)
            yield Changed(name, f"constant: {_told(value)}")
        if isinstance(graph, Graph):
            graph.fixed = {**graph.fixed, **made}


def fitted(value: NDArray[Any], tensor: gs.Tensor) -> NDArray[Any]:
    """A value in type and shape of the input that it is for.

    Raises:
        UsageError: it does not fit, or would change by the conversion.
    """
    dtype, shape = graphs.dtype_of(tensor), graphs.shape_of(tensor)
    where = f"--fix-input {tensor.name}"
    if dtype is None or dtype.kind not in _KINDS:
        raise UsageError(f"{where}: only inputs that hold numbers or truth values can be fixed")
    given = value.astype(dtype) if value.dtype.kind in "biuf" else None
    whole = value.dtype.kind == "f" and bool(np.all(value == np.round(value)))
    kind = "i" if whole and dtype.kind in "iu" else value.dtype.kind.replace("u", "i")
    zero_or_one = dtype.kind == "b" and kind == "i" and bool(np.isin(value, (0, 1)).all())
    exact = given is not None and (dtype.kind in "fV" or bool(np.all(given.astype(value.dtype) == value)))
    if given is None or not exact or not (kind in _KINDS[dtype.kind] or zero_or_one):
        raise UsageError(f"{where}: the model takes {dtype.name}, and {_told(value)} is not of that type")
    if shape is None or (
        given.ndim == len(shape) and all(_fits(d, n) for d, n in zip(shape, given.shape, strict=True))
    ):
        return given
    fixed = graphs.static_shape(tensor)
    if fixed is not None and given.size == 1:
        return np.full(fixed, given.reshape(-1)[0])
    wanted = "x".join("?" if not isinstance(size, int) else str(size) for size in shape) or "a scalar"
    free = "" if fixed is not None or given.size != 1 else "; --fix-shape says how long its free axes are"
    raise UsageError(f"{where}: the model takes the shape {wanted}, and the value has {list(given.shape)}{free}")


def _fits(size: int | str | None, given: int) -> bool:
    return not isinstance(size, int) or size == given


def _replace(graph: gs.Graph, tensor: gs.Tensor, value: NDArray[Any], names: Names) -> None:
    graph.inputs[:] = [one for one in graph.inputs if one is not tensor]
    constant = gs.Constant(tensor.name, value)
    for node, index in graphs.consumers(tensor):
        edit.set_input(node, index, constant)
    for inner in graphs.graphs(graph):
        if not graphs.is_output(inner, tensor):
            continue
        # An output needs a node of its own; that of the model keeps its name.
        copied = gs.Variable(tensor.name if inner is graph else names.fresh(f"{tensor.name}/copy"), value.dtype)
        copied.shape = tensor.shape
        constant.name = names.fresh(f"{tensor.name}/value") if inner is graph else constant.name
        node = gs.Node("Identity", names.fresh(f"{tensor.name}/Identity"), {}, [constant], [copied])
        edit.insert_at(inner, len(inner.nodes), [node])
        inner.outputs[:] = [copied if one is tensor else one for one in inner.outputs]


def _told(value: NDArray[Any]) -> str:
    """A value in a message."""
    if value.size == 1:
        return str(value.reshape(-1)[0])
    return f"{value.dtype.name} {list(value.shape)}"
