"""The nodes that are to stand for one node: made one by one with new names, put in its place at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import InternalError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class NodeWriter:
    """Collects what a node becomes.

    Args:
        graph: the graph, of all that are nested, in whose list the node stands.
        node: the node that is written out. `finish` takes it away.
        names: new names, of the whole model.
        dtype: element type (numpy) of what is computed; an operator that writes another one says so.
    """

    def __init__(self, graph: gs.Graph, node: gs.Node, names: Names, dtype: np.dtype[Any]) -> None:
        self.graph = graph
        self.node = node
        self.names = names
        self.dtype = dtype
        self.nodes: list[gs.Node] = []
        self._results: dict[int, gs.Tensor] = {}

    def op(
        self, op: str, what: str, inputs: Sequence[gs.Tensor], *, dtype: np.dtype[Any] | None = None, **attrs: Any
    ) -> gs.Tensor:
        """One more node with one output, `what` it is being part of its name; the tensor that it writes."""
        return self.ops(op, what, inputs, 1, dtype=dtype, **attrs)[0]

    def ops(
        self,
        op: str,
        what: str,
        inputs: Sequence[gs.Tensor],
        outputs: int,
        *,
        dtype: np.dtype[Any] | None = None,
        name: str = "",
        **attrs: Any,
    ) -> list[gs.Tensor]:
        """One more node with several outputs; it is called `name`, which must be new, where that is given."""
        base = f"{self.node.name}/{what}"
        made = [gs.Variable(self.names.fresh(base), dtype or self.dtype) for _ in range(outputs)]
        self.nodes.append(gs.Node(op, name or self.names.fresh(f"{base}/{op}"), attrs, list(inputs), list(made)))
        return list(made)

    def fresh(self, what: str) -> str:
        """A new name of the same origin."""
        return self.names.fresh(f"{self.node.name}/{what}")

    def constant(self, what: str, values: Array) -> gs.Constant:
        """A constant of its own."""
        return edit.add_constant(self.fresh(what), values)

    def number(self, what: str, value: float) -> gs.Constant:
        """A scalar of the type that is computed in."""
        return self.constant(what, np.asarray(value, self.dtype))

    def integers(self, what: str, values: Sequence[int] | int) -> gs.Constant:
        """INT64: a vector, or a scalar."""
        return self.constant(what, np.asarray(values, np.int64))

    def read(self, index: int) -> gs.Tensor | None:
        """An input of the node that is written out; None where it is left out."""
        return self.node.inputs[index] if graphs.is_present(self.node, index) else None

    def reads(self, index: int) -> gs.Tensor:
        """An input that must be there.

        Raises:
            InternalError: it is left out.
        """
        tensor = self.read(index)
        if tensor is None:
            raise InternalError(f"node '{self.node.name}' ({self.node.op}) has no input {index}")
        return tensor

    def wants(self, index: int) -> bool:
        """Whether the node has this output, under a name."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def result(self, index: int, tensor: gs.Tensor) -> None:
        """What stands for an output of the node from now on; nothing where it has no such output."""
        if self.wants(index):
            self._results[index] = tensor

    def finish(self) -> int:
        """Puts what was made in the place of the node, whose outputs keep their names. The number of nodes.

        Raises:
            InternalError: an output of the node has nothing that stands for it.
        """
        at = edit.index_of(self.graph, self.node)
        outputs = list(self.node.outputs)
        missing = [one.name for i, one in enumerate(outputs) if one.name and i not in self._results]
        if missing:
            raise InternalError(f"node '{self.node.name}' ({self.node.op}) is written out without {missing}")
        edit.remove_node(self.graph, self.node)
        given: dict[int, gs.Tensor] = {}  # what stands for several outputs is the first of them, and copied for others
        for index, made in self._results.items():
            if id(made) in given:
                self._copy(given[id(made)], outputs[index])
                continue
            self._hand_on(made, outputs[index])
            given[id(made)] = outputs[index]
        edit.insert_at(self.graph, at, self.nodes)
        return len(self.nodes)

    def discard(self) -> None:
        """Takes back what was made: the node stays, and nothing else reads its inputs on its behalf."""
        for made in self.nodes:
            edit.detach(made)
        self.nodes.clear()
        self._results.clear()

    def _hand_on(self, made: gs.Tensor, output: gs.Tensor) -> None:
        """Makes what writes `made` write `output` in its place, or lets an Identity copy what is not ours."""
        maker = next((one for one in self.nodes if any(tensor is made for tensor in one.outputs)), None)
        if maker is None:
            self._copy(made, output)
            return
        edit.set_output(maker, next(i for i, tensor in enumerate(maker.outputs) if tensor is made), output)
        for reader, index in graphs.consumers(made):
            edit.set_input(reader, index, output)

    def _copy(self, tensor: gs.Tensor, output: gs.Tensor) -> None:
        self.nodes.append(gs.Node("Identity", self.names.fresh(f"{output.name}/Identity"), {}, [tensor], [output]))
