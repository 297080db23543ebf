"""Which tensors of an edited graph hold what they held before, so that nothing of them has to be measured again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray


_GLANCE = 4096  # elements of two weights that are compared before all of them are


def unchanged(before: gs.Graph, after: gs.Graph) -> frozenset[str]:
    """Names of the tensors, inputs and nested graphs included, that both graphs compute alike.

    Alike is: the same operators with the same attributes and the same constants, down to the inputs. A rewrite that
    comes to the same values in another way counts as a change.

    Args:
        before: a graph.
        after: an edited copy of it, whose tensors have kept their names where they have kept their meaning.
    """
    inputs = {one.name: one for one in before.inputs}
    known = {one.name for one in after.inputs if one.name in inputs and one.dtype == inputs[one.name].dtype}
    return frozenset(known | set(_alike(before, after, known)))


def _alike(before: gs.Graph, after: gs.Graph, outer: set[str]) -> Iterator[str]:
    """Names that the nodes of `after` write as those of `before` do; `outer` are those that are known around them."""
    writers = {output.name: node for node in before.nodes for output in node.outputs}
    known = set(outer)
    for node in after.nodes:
        old = writers.get(node.outputs[0].name) if node.outputs else None
        if old is None or not _same_node(old, node, known):
            known.difference_update(output.name for output in node.outputs)  # a name that means something else now
            continue
        inner = list(zip(graphs.subgraphs(old), graphs.subgraphs(node), strict=True))
        found = [_body(one, other, known) for one, other in inner]
        if any(names is None for names in found):
            continue
        names = {output.name for output in node.outputs} | {name for body in found for name in body or ()}
        known |= names
        yield from names


def _body(before: gs.Graph, after: gs.Graph, outer: set[str]) -> set[str] | None:
    """All names of a nested graph that is wholly the same; None where it is not."""
    inputs = {one.name for one in after.inputs}
    if [one.name for one in before.inputs] != [one.name for one in after.inputs]:
        return None
    found = set(_alike(before, after, outer | inputs)) | inputs
    written = {output.name for node in after.nodes for output in node.outputs if output.name}
    ends = [one.name for one in before.outputs] == [one.name for one in after.outputs]
    return found if ends and written <= found and len(before.nodes) == len(after.nodes) else None


def _same_node(old: gs.Node, new: gs.Node, known: set[str]) -> bool:
    if (old.op, old.domain or "") != (new.op, new.domain or "") or len(old.inputs) != len(new.inputs):
        return False
    if [one.name for one in old.outputs] != [one.name for one in new.outputs] or not _same_attributes(old, new):
        return False
    return all(_same_input(one, other, known) for one, other in zip(old.inputs, new.inputs, strict=True))


def _same_input(old: gs.Tensor, new: gs.Tensor, known: set[str]) -> bool:
    if isinstance(old, gs.Constant) or isinstance(new, gs.Constant):
        constants = isinstance(old, gs.Constant) and isinstance(new, gs.Constant)
        if constants and old._values is new._values:
            return True
        return constants and _equal(graphs.values_of(old), graphs.values_of(new))
    return bool(old.name == new.name and (not new.name or new.name in known))


def _same_attributes(old: gs.Node, new: gs.Node) -> bool:
    if old.attrs.keys() != new.attrs.keys() or len(graphs.subgraphs(old)) != len(graphs.subgraphs(new)):
        return False
    return all(_same_value(value, new.attrs[name]) for name, value in old.attrs.items())


def _same_value(old: Any, new: Any) -> bool:
    """Of an attribute; nested graphs are compared elsewhere."""
    if isinstance(old, gs.Graph) and isinstance(new, gs.Graph):
        return True
    if isinstance(old, gs.Constant) and isinstance(new, gs.Constant):
        return _equal(graphs.values_of(old), graphs.values_of(new))
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(_same_value(one, other) for one, other in zip(old, new, strict=True))
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return _equal(old, new)
    return type(old) is type(new) and bool(old == new)


def _equal(old: NDArray[Any], new: NDArray[Any]) -> bool:
    """Whether two arrays hold the same; those that share their memory are not read."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if old is new or (old.ctypes.data == new.ctypes.data and old.strides == new.strides):
        return True
    one, other = old.reshape(-1), new.reshape(-1)
    return _same_bytes(one[:_GLANCE], other[:_GLANCE]) and _same_bytes(one, other)


def _same_bytes(old: NDArray[Any], new: NDArray[Any]) -> bool:
    if old.dtype.kind == "O":
        return bool(np.array_equal(old, new))
    one, other = (np.ascontiguousarray(array).view(np.uint8) for array in (old, new))
    return bool(np.array_equal(one, other))
