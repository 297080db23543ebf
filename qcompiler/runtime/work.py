"""How much a model multiplies: counted from the shapes of one sample, and inside Loops, Scans and Ifs from one run.

What happens in a nested graph is known only when it runs: which branch of an If was taken, how many rounds a Loop made,
how a cache grew from round to round. ONNX Runtime's profile lists every node that ran with the shapes of what it read
and wrote, so that run is counted as it was. Models without such work are not run for it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shape, Shapes, macs_of, multiplies, node_macs, tensors_for_shapes
from qcompiler.runtime.session import Session
from qcompiler.runtime.shapes import assumed_shapes, concrete_shapes
from qcompiler.support.held import workshop

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST: Final = 1_000_000  # events that ONNX Runtime writes into one profile; it drops what comes behind them
_NAME: Final = re.compile(r'"name" ?: ?"(.*?)_kernel_time"')


def count_macs(graph: gs.Graph, feeds: Mapping[str, NDArray[Any]], shapes: Shapes | None = None) -> dict[str, int]:
    """Multiply-accumulates on one sample by node, nested graphs included; what cannot be counted is left out.

    Args:
        graph: normalised: names are unique.
        feeds: the sample.
        shapes: of the tensors in `tensors_for_shapes`, where they are known already.

    Raises:
        DataError: the feeds do not fit.
        ModelError: ONNX Runtime refuses the model, or a node fails.
    """
    if shapes is None:
        shapes = concrete_shapes(graph, feeds, tensors_for_shapes(graph))
    return node_macs(graph, shapes, nested_work(graph, feeds))


def count_macs_without_data(graph: gs.Graph, usual: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Multiply-accumulates by node where there is no sample; what cannot be counted is left out.

    Args:
        graph: normalised: names are unique.
        usual: shapes of inputs; open axes of all others count as 1, so that shares are those of one row.
    """
    return node_macs(graph, assumed_shapes(graph, usual, rest=1))


def nested_work(graph: gs.Graph, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Of the nodes in nested graphs, summed over all times that they ran; 0 for those that did not run.

    Nodes that ran and cannot be counted are left out, and all of them where the profile is not complete.
    """
    inner = {n.name: n for owner in graph.nodes for one in graphs.subgraphs(owner) for n in graphs.walk(one)}
    nodes = {name: node for name, node in inner.items() if multiplies(node)}
    if not nodes:
        return {}
    found, unknown, events = Counter(dict.fromkeys(nodes, 0)), set[str](), 0
    with workshop(Path(tempfile.gettempdir())) as folder:
        session = Session(graph, quick=True, profile=folder / "run")
        session.run(feeds)
        for line in _lines(session.profile()):
            events += 1
            named = _NAME.search(line)
            node = nodes.get(named.group(1)) if named else None
            if node is None:
                continue
            count = _counted(node, json.loads(line.strip().rstrip(",]").strip())["args"])
            if count is None:
                unknown.add(node.name)
            else:
                found[node.name] += count
    if events >= MOST:
        return {}
    return {name: count for name, count in found.items() if name not in unknown}


def _lines(profile: Path) -> Iterator[str]:
    """The events of a profile, one a line; it may be too large to be read at once."""
    with profile.open(encoding="utf-8", errors="replace") as file:
        yield from file


def _counted(node: gs.Node, event: Mapping[str, Any]) -> int | None:
    """Of one run of a node; None where the event does not tell its shapes."""
    reads = _assigned(node.inputs, _listed(event, "input_type_shape"))
    writes = _assigned(node.outputs, _listed(event, "output_type_shape"))
    return None if reads is None or writes is None else macs_of(node, {**reads, **writes})


def _listed(event: Mapping[str, Any], key: str) -> list[Shape]:
    return [tuple(int(size) for size in next(iter(one.values()))) for one in event.get(key, ())]


def _assigned(tensors: Sequence[gs.Tensor], listed: Sequence[Shape]) -> dict[str, Shape] | None:
    """Shapes by name; None where they cannot be told apart.

    Omitted tensors are not listed, and neither are the initializers that the session holds itself: those that it was
    lent are. What a Constant node gives is an initializer of the session.
    """
    named = [tensor for tensor in tensors if tensor.name]
    held = {tensor.name: own for tensor in named if (own := _initial(tensor)) is not None}
    spare, rest, found = len(listed) - sum(tensor.name not in held for tensor in named), list(listed), dict(held)
    for tensor in named:
        own = held.get(tensor.name)
        if own is not None and not (spare > 0 and rest and rest[0] == own):
            continue
        if not rest:
            return None
        spare -= own is not None
        found[tensor.name] = rest.pop(0)
    return None if rest else found


def _initial(tensor: gs.Tensor) -> Shape | None:
    """The shape of an initializer or of what a Constant node gives; None for all other tensors."""
    if graphs.is_constant(tensor):
        return tuple(int(size) for size in tensor.shape)
    made = graphs.producer(tensor)
    value = graphs.attribute_value(made) if made is not None and graphs.is_op(made, "Constant") else None
    return None if value is None else tuple(value.shape)
