"""Values that are no numbers: which are meant so, and which node makes the others.

Graphs write infinities on purpose: masked scores, the logarithm of 0, sentinels, unused slots. So an infinity is no
error of the model; whoever compares takes it as equal or not. NaN is one, unless it comes of a NaN that stands in the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import element_types
from qcompiler.ir.graph import constant_value, is_constant, is_op, producer, tensors, values_of
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import OpenModel, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray


def not_finite(graph: gs.Graph, feeds: Feeds, what: str, where: str) -> ModelError:
    """The error for a tensor (`what`) that is not finite on a sample (`where`); looks for the node where it began."""
    node = first_not_finite(graph, feeds)
    began = f"node '{node.name}' ({node.op}) is the first that computes one" if node else "no node explains it"
    return ModelError(
        f"{what} of the float model has NaN or infinite values on {where}; {began}. Check that this sample is prepared "
        "as the model wants it, leave it out, or mend the model at that node."
    )


def refuse_not_finite(model: Model, source: Iterable[Feeds], place: Callable[[int], int] | None = None) -> None:
    """Looks for the first sample on which an output is NaN and not meant to be, or no float output has a number.

    Args:
        model: the float model.
        source: feeds.
        place: where each of them, counted from 0, stands in the data, for the message; None: as they are counted.

    Raises:
        ModelError: there is one; names the sample, the output and the node where that arises.
    """
    session = OpenModel(model)
    for index, feeds in enumerate(source):
        outputs = session.run(feeds)
        refuse_outputs(model.graph, feeds, outputs, index if place is None else place(index))


def refuse_outputs(graph: gs.Graph, feeds: Feeds, outputs: Mapping[str, Any], sample: int) -> None:
    """Refuses outputs of a model that are NaN and not meant to be, or among which no float is a number.

    Args:
        graph: the float model.
        feeds: what it was run on.
        outputs: what it gave, by name.
        sample: index of the feed, for the message.

    Raises:
        ModelError: names the sample, the output and the node where that arises.
    """
    nan = refuse_nan(graph, feeds, outputs, sample)
    floats = _floats(outputs)
    bare = [name for name, parts in floats.items() if any(one.size for one in parts)]
    if bare and not nan and not any(np.isfinite(one).any() for name in bare for one in floats[name]):
        raise not_finite(graph, feeds, f"output '{bare[0]}'", f"sample {sample}")


def refuse_nan(graph: gs.Graph, feeds: Feeds, outputs: Mapping[str, Any], sample: int) -> bool:
    """As `refuse_outputs`, and lets outputs pass that are infinite throughout.

    Returns:
        Whether there is NaN, which is meant.
    """
    floats = _floats(outputs)
    nan = next((name for name, parts in floats.items() if any(np.isnan(one).any() for one in parts)), None)
    if nan is not None and not nan_on_purpose(graph, feeds):
        raise not_finite(graph, feeds, f"output '{nan}'", f"sample {sample}")
    return nan is not None


def _floats(outputs: Mapping[str, Any]) -> dict[str, list[NDArray[Any]]]:
    return {name: [one for one in flat(value) if one.dtype.kind == "f"] for name, value in outputs.items()}


def nan_on_purpose(graph: gs.Graph, feeds: Feeds) -> bool:
    """Whether all NaN in the main graph, and there is some, begins at nodes that read or hold a constant NaN."""
    nan, _ = _not_numbers(graph, feeds)
    began = [
        node
        for node in graph.nodes
        if any(t.name in nan for t in node.outputs) and not any(t.name in nan for t in node.inputs)
    ]
    return bool(began) and all(_holds_nan(node) for node in began)


def _holds_nan(node: gs.Node) -> bool:
    held = [constant_value(t) for t in node.inputs]
    held += [constant_value(t) for t in node.outputs if is_op(node, "Constant")]
    held += [values_of(value) for value in node.attrs.values() if isinstance(value, gs.Constant)]
    return any(one is not None and one.dtype.kind == "f" and bool(np.isnan(one).any()) for one in held)


def overflowing(graph: gs.Graph, feeds: Feeds) -> gs.Node | None:
    """The first node that makes an infinity out of numbers and reads none; None where all are given or constant."""
    _, infinite = _not_numbers(graph, feeds)
    return next(
        (
            node
            for node in graph.nodes
            if any(t.name in infinite for t in node.outputs)
            and not any(_is_infinite(t, infinite) for t in node.inputs)
            and not any(_is_infinite(t, ()) for t in node.outputs if is_op(node, "Constant"))
        ),
        None,
    )


def first_not_finite(graph: gs.Graph, feeds: Feeds) -> gs.Node | None:
    """The first node in graph order that makes NaN, or, where there is none, infinity out of numbers.

    Attention masks of minus infinity are ordinary, so infinities count only when no NaN explains what happened. Where
    the NaN comes of an infinity that an earlier node made out of numbers, that one is to blame.
    """
    bad_nan, bad_inf = _not_numbers(graph, feeds)
    for bad in (bad_nan, bad_inf):
        for node in graph.nodes:
            if any(t.name in bad for t in node.outputs):
                return _overflowing(node, bad_inf)
    return None


def _not_numbers(graph: gs.Graph, feeds: Feeds) -> tuple[set[str], set[str]]:
    """Names of the tensors of the main graph that hold NaN, and of those that hold an infinity and no NaN."""
    types = element_types.infer(graph)  # most files don't say them, and this graph may be as it was read
    taps = [t.name for t in tensors(graph) if not is_constant(t) and (dtype := types.get(id(t))) and dtype.kind == "f"]
    bad_nan: set[str] = set()
    bad_inf: set[str] = set()
    for name, value in (item for part in stream(graph, taps, [feeds], optimize=False) for item in part.values.items()):
        numbers = np.asarray(value, np.float64)
        if np.isnan(numbers).any():
            bad_nan.add(name)
        elif np.isinf(numbers).any():
            bad_inf.add(name)
    return bad_nan, bad_inf


def _overflowing(node: gs.Node, infinite: Collection[str]) -> gs.Node:
    """Follows infinities from a node backwards to the one that makes them out of numbers; itself if they are given."""
    while True:
        before = [p for t in node.inputs if t.name in infinite and (p := producer(t)) is not None]
        if not before:
            return node
        made = [p for p in before if not any(_is_infinite(t, infinite) for t in p.inputs)]
        if made:
            return made[0]
        follow = [p for p in before if any(t.name in infinite and producer(t) is not None for t in p.inputs)]
        if not follow:
            return node
        node = follow[0]


def _is_infinite(tensor: gs.Tensor, infinite: Collection[str]) -> bool:
    value = constant_value(tensor)
    return tensor.name in infinite or (value is not None and value.dtype.kind == "f" and bool(np.isinf(value).any()))


def flat(value: Any) -> list[NDArray[Any]]:
    """An output that is a sequence or a map counts as its elements."""
    if isinstance(value, list):
        return [part for one in value for part in flat(one)]
    if isinstance(value, dict):
        return [np.asarray(list(value.keys())), np.asarray(list(value.values()))]
    return [np.asarray(value)]


def finite(value: NDArray[Any]) -> bool:
    """Whether an array holds neither NaN nor an infinity; arrays that are no floats do not."""
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
