"""Where a node is rewritten: the graph it stands in, and names for what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import add_constant, detach, set_input, set_output
from qcompiler.ir.graph import dtype_of, is_output
from qcompiler.ir.names import Names

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CannotRaiseError(Exception):
    """The newer opset has no word for what a node does; the text says what that is."""


@dataclass(frozen=True)
class Place:
    """The graph of the nodes that are rewritten; new names are taken from `names`."""

    graph: gs.Graph
    names: Names

    def constant(self, node: gs.Node, what: str, values: NDArray[Any]) -> gs.Constant:
        """A new initializer beside a node."""
        return add_constant(self.names.fresh(f"{node.name}.{what}"), values)

    def value(self, node: gs.Node, what: str, dtype: Any = None) -> gs.Variable:
        """A new tensor beside a node."""
        return gs.Variable(self.names.fresh(f"{node.name}.{what}"), dtype)

    def node(
        self,
        beside: gs.Node,
        op: str,
        inputs: Sequence[gs.Tensor],
        attrs: dict[str, Any] | None = None,
        output: gs.Tensor | None = None,
    ) -> gs.Node:
        """A new node beside another; its output is a new tensor of the type of its first input unless one is given."""
        made = self.value(beside, op, dtype_of(inputs[0])) if output is None else output
        return gs.Node(op, self.names.fresh(f"{beside.name}.{op}"), attrs or {}, list(inputs), [made])

    def read(self, node: gs.Node, index: int) -> bool:
        """Whether anybody reads an output of a node."""
        if index >= len(node.outputs) or not node.outputs[index].name:
            return False
        return bool(node.outputs[index].outputs) or is_output(self.graph, node.outputs[index])


# What stands for a node in the next opset that changed its operator, in order; most often the node itself, edited.
How = Callable[[gs.Node, Place], list[gs.Node]]


def same(node: gs.Node, place: Place) -> list[gs.Node]:
    """What was added since then does nothing where it is not given."""
    del place
    return [node]


def put_input(node: gs.Node, index: int, tensor: gs.Tensor) -> None:
    """Gives a node one more input, behind omitted ones where it has fewer."""
    while len(node.inputs) < index:
        node.inputs.append(gs.Variable.empty())
    if index < len(node.inputs):
        set_input(node, index, tensor)
    else:
        node.inputs.append(tensor)


def put_behind(node: gs.Node, index: int, made: gs.Tensor) -> gs.Tensor:
    """Makes a node write `made` instead of one of its outputs, which is returned for somebody else to write."""
    old = node.outputs[index]
    set_output(node, index, made)
    return old


def shorten(node: gs.Node, *, inputs: int | None = None, outputs: int | None = None) -> None:
    """Keeps only so many inputs or outputs of a node."""
    reads, writes = list(node.inputs)[:inputs], list(node.outputs)[:outputs]
    detach(node)
    node.inputs.extend(reads)
    node.outputs.extend(writes)


def element_type(node: gs.Node) -> np.dtype[Any]:
    """Of what a node computes on: of its first input, else of its first output; FP32 where neither is known."""
    known = dtype_of(node.inputs[0]) or dtype_of(node.outputs[0])
    return known or np.dtype(np.float32)
