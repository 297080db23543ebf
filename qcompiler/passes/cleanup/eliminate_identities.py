"""Nodes that pass their input on unchanged go away.

Identity; Dropout outside of training whose mask nobody reads; Cast to the type its input has; Transpose that keeps the
order; Reshape, Expand and Flatten to the shape their input has; Pad by nothing; Concat, Sum, Max,
Min and Mean of one; Mul and Div by 1, Add and Sub of 0, Pow 1, where the constant does not broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.edit import remove_nodes, replace_uses, why_not_replace
from qcompiler.ir.graph import (
    constant_value,
    dtype_of,
    graphs,
    is_float,
    is_present,
    is_standard,
    np_dtype,
    permutation,
    shape_of,
    static_shape,
)
from qcompiler.passes.base import Changed, Note, Pass, Skipped


@dataclass(frozen=True)
class EliminateIdentities(Pass):
    """Remove nodes that pass their input on unchanged."""

    exact_to: ClassVar[float | None] = 0.0

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per such node; one that must stay because of the graph's interface is skipped."""
        for inner in graphs(graph):
            yield from _one(inner)


def _one(graph: gs.Graph) -> Iterator[Note]:
    gone: list[gs.Node] = []
    for node in graph.nodes:
        source = passed_on(node)
        if source is None:
            continue
        output = node.outputs[0]
        refusal = why_not_replace(graph, output, source)
        if refusal:
            yield Skipped(node.name, refusal)
            continue
        # The output may know its shape better than the input does.
        if isinstance(source, gs.Variable) and source.shape is None:
            source.shape = output.shape
        replace_uses(graph, output, source)
        gone.append(node)
        yield Changed(node.name, f"{node.op} removed; its readers read '{source.name}'")
    remove_nodes(graph, gone)


def passed_on(node: gs.Node) -> gs.Tensor | None:
    """The input that a node yields unchanged as its first output; None where it does anything or that is not sure."""
    rule = _RULES.get(node.op) if is_standard(node) else None
    if rule is None or not node.inputs or not node.outputs:
        return None
    return rule(node)


def _first(holds: Callable[[gs.Node], bool]) -> Callable[[gs.Node], gs.Tensor | None]:
    return lambda node: node.inputs[0] if holds(node) else None


def _dropout(node: gs.Node) -> bool:
    if any(output.name and output.outputs for output in node.outputs[1:]):
        return False
    if not is_present(node, 2):
        return True
    training = constant_value(node.inputs[2])
    return training is not None and not training.any()


def _cast(node: gs.Node) -> bool:
    known = dtype_of(node.inputs[0])
    return known is not None and known == np_dtype(node.attrs["to"])


def _transpose(node: gs.Node) -> bool:
    shape = shape_of(node.inputs[0])
    rank = len(node.attrs["perm"]) if "perm" in node.attrs else None if shape is None else len(shape)
    return rank is not None and permutation(node, rank) == tuple(range(rank))


def _keeps_static_shape(node: gs.Node) -> bool:
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return before is not None and before == after


def _reshape(node: gs.Node) -> bool:
    """Sure only where the shape asked for is constant and its open dimensions agree with a known input shape."""
    shape = shape_of(node.inputs[0])
    wanted = constant_value(node.inputs[1]) if is_present(node, 1) else None
    if shape is None or wanted is None or len(wanted) != len(shape):
        return False
    copies_zero = not node.attrs.get("allowzero", 0)
    same = [
        (copies_zero and int(w) == 0) or (isinstance(d, int) and int(w) == d)
        for w, d in zip(wanted, shape, strict=True)
    ]
    # One -1 stands for whatever is left, which is the input's own dimension when all others agree.
    return all(ok or int(w) == -1 for ok, w in zip(same, wanted, strict=True))


def _expand(node: gs.Node) -> bool:
    wanted = constant_value(node.inputs[1])
    shape = shape_of(node.inputs[0])
    return wanted is not None and shape is not None and len(wanted) <= len(shape) and bool((wanted == 1).all())


def _pad(node: gs.Node) -> bool:
    if "pads" in node.attrs:
        return not any(node.attrs["pads"])
    pads = constant_value(node.inputs[1]) if is_present(node, 1) else None
    return pads is not None and not pads.any()


def _single(node: gs.Node) -> bool:
    return len(node.inputs) == 1


def _neutral(value: float, *, either: bool) -> Callable[[gs.Node], gs.Tensor | None]:
    """`x op c` with every element of `c` neutral, where `c` cannot give the result another shape."""

    def rule(node: gs.Node) -> gs.Tensor | None:
        for x, other in ((0, 1), (1, 0)) if either else ((0, 1),):
            constant = constant_value(node.inputs[other])
            if constant is None or not is_float(node.inputs[x]) or not bool(np.all(constant == value)):
                continue
            # -0.0 + 0.0 is 0.0, so only adding -0.0 is exact; nothing downstream of a sum tells them apart but 1/x.
            if _broadcasts_into(constant.shape, node.inputs[x]):
                return node.inputs[x]
        return None

    return rule


def _broadcasts_into(shape: tuple[int, ...], tensor: gs.Tensor) -> bool:
    target = shape_of(tensor)
    if target is None:
        return shape == ()
    if len(shape) > len(target):
        return False
    return all(d in (1, t) for d, t in zip(reversed(shape), reversed(target), strict=False))


_RULES: dict[str, Callable[[gs.Node], gs.Tensor | None]] = {
    "Identity": _first(lambda _: True),
    "Dropout": _first(_dropout),
    "Cast": _first(_cast),
    "Transpose": _first(_transpose),
    "Reshape": _first(_reshape),
    "Flatten": _first(_keeps_static_shape),
    "Expand": _first(_expand),
    "Pad": _first(_pad),
    "Concat": _first(_single),
    "Sum": _first(_single),
    "Max": _first(_single),
    "Min": _first(_single),
    "Mean": _first(_single),
    "Mul": _neutral(1.0, either=True),
    "Div": _neutral(1.0, either=False),
    "Add": _neutral(0.0, either=True),
    "Sub": _neutral(0.0, either=False),
    "Pow": _neutral(1.0, either=False),
}
