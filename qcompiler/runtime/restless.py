"""Nodes that give other numbers when they are run again, though what draws random numbers is held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import is_constant, tensors
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.finite import flat
from qcompiler.runtime.stream import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray


NOTABLE = 1e-4  # of the largest value; less than this is rounding, which may depend on where arrays lie in memory


def first_restless(graph: gs.Graph, feeds: Feeds) -> gs.Node | None:
    """The first node in graph order whose results differ between two runs on the same feed; None where none does.

    Raises:
        DataError: the feed does not fit.
        ModelError: ONNX Runtime refuses the graph, or a node fails.
    """
    taps = [t.name for t in tensors(graph) if not is_constant(t)]
    once = stream(graph, taps, [feeds], optimize=False, quick=True)
    twice = stream(graph, taps, [feeds, feeds], optimize=False, quick=True)
    again = (part for part in twice if part.index)  # of one session: each begins with the same random numbers
    found: set[str] = set()
    for first, second in zip(once, again, strict=True):
        found |= {name for name, value in first.values.items() if differ(flat(value), flat(second.values[name]))}
    return next((node for node in graph.nodes if any(t.name in found for t in node.outputs)), None)


def differ(first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> bool:
    """Whether two results of one tensor differ by more than rounding: in number, shape or any element."""
    if [one.shape for one in first] != [one.shape for one in second]:
        return True
    return any(_differ(one, other) for one, other in zip(first, second, strict=True))


def _differ(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.dtype.kind != "f":
        return not np.array_equal(first, second)
    a, b = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return True
    largest = float(np.abs(a[finite]).max(initial=0.0))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) > NOTABLE * largest
