"""The first tensor that is NaN or infinite, for error messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import element_types
from qcompiler.ir.graph import constant_value, is_constant, producer, tensors
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


def refuse_not_finite(model: Model, source: Iterable[Feeds]) -> None:
    """Looks for the first sample on which an output is not finite.

    Raises:
        ModelError: there is one; names the sample, the output and the node where that arises.
    """
    session = OpenModel(model)
    for index, feeds in enumerate(source):
        for name, value in session.run(feeds).items():
            if not all(finite(part) for part in flat(value)):
                raise not_finite(model.graph, feeds, f"output '{name}'", f"sample {index}")


def first_not_finite(graph: gs.Graph, feeds: Feeds) -> gs.Node | None:
    """The first node in graph order that makes NaN, or, where there is none, infinity out of numbers.

    Attention masks of minus infinity are ordinary, so infinities count only when no NaN explains what happened. Where
    the NaN comes of an infinity that an earlier node made out of numbers, that one is to blame.
    """
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
    for bad in (bad_nan, bad_inf):
        for node in graph.nodes:
            if any(t.name in bad for t in node.outputs):
                return _overflowing(node, bad_inf)
    return None


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


def flat(value: Any) -> Iterator[NDArray[Any]] | list[NDArray[Any]]:
    """An output that is a sequence or a map counts as its elements."""
    if isinstance(value, list):
        return [part for one in value for part in flat(one)]
    if isinstance(value, dict):
        return [np.asarray(list(value.keys())), np.asarray(list(value.values()))]
    return [np.asarray(value)]


def finite(value: NDArray[Any]) -> bool:
    """Whether an array holds neither NaN nor an infinity; arrays that are no floats do not."""
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
