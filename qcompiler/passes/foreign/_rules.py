"""What a rule is that writes out an operator, and what the rules have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.passes.node_writer import NodeWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray


INT64 = np.dtype(np.int64)


class NotWrittenError(Exception):
    """This form of the operator is not written out; the message is the end of a sentence that begins with its name."""


class RankUnknownError(NotWrittenError):
    """The rank of an input is not known yet: nodes in front of it have to be written out first."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator is written out.

    Attributes:
        write: makes the nodes and says what stands for each output.
        attributes: those that `write` reads or may ignore; a node with any other one is left alone.
        engines: whose graphs keep the operator, because they run it better than what it is written out as.
    """

    write: Callable[[NodeWriter], None]
    attributes: frozenset[str] = frozenset()
    kept_by: frozenset[str] = frozenset()


def rule(write: Callable[[NodeWriter], None], attributes: str = "", *, kept_by: Sequence[str] = ()) -> Rule:
    """A rule; attributes are separated by spaces."""
    return Rule(write, frozenset(attributes.split()), frozenset(kept_by))


def number(w: NodeWriter, name: str, default: float) -> float:
    """A float attribute."""
    return float(w.node.attrs.get(name, default))


def integer(w: NodeWriter, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return int(w.node.attrs.get(name, default))


def needed(w: NodeWriter, name: str) -> int:
    """An integer attribute that must be there.

    Raises:
        NotWrittenError: it is not.
    """
    if name not in w.node.attrs:
        raise NotWrittenError(f"has no attribute '{name}'")
    return int(w.node.attrs[name])


def text(w: NodeWriter, name: str, default: str = "") -> str:
    """A string attribute."""
    value = w.node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def rank(tensor: gs.Tensor) -> int:
    """The rank of a tensor.

    Raises:
        RankUnknownError: nothing says it.
    """
    if tensor.shape is None:
        raise RankUnknownError(f"reads '{tensor.name}', whose rank is not known")
    return len(tensor.shape)


def fixed(tensor: gs.Tensor, axis: int) -> int:
    """The size of one axis.

    Raises:
        RankUnknownError: nothing says the rank.
        NotWrittenError: the axis is open.
    """
    rank(tensor)
    size = (graphs.shape_of(tensor) or ())[axis]
    if not isinstance(size, int):
        raise RankUnknownError(f"reads '{tensor.name}', whose size along axis {axis} is open")
    return size


def values(w: NodeWriter, index: int) -> NDArray[Any]:
    """The values of a constant input.

    Raises:
        NotWrittenError: it is computed.
    """
    found = graphs.constant_value(w.reads(index))
    if found is None:
        raise NotWrittenError(f"computes its input '{w.reads(index).name}', which has to be constant")
    return found


def refuse_inputs(w: NodeWriter, **named: int) -> None:
    """No such optional inputs are read here.

    Raises:
        NotWrittenError: one is there.
    """
    for name, index in named.items():
        if w.read(index) is not None:
            raise NotWrittenError(f"has the input '{name}'")


def refuse_outputs(w: NodeWriter, **named: int) -> None:
    """No such optional outputs are made here.

    Raises:
        NotWrittenError: one is asked for.
    """
    for name, index in named.items():
        if w.wants(index):
            raise NotWrittenError(f"gives the output '{name}'")


def refuse_values(w: NodeWriter, **named: object) -> None:
    """These attributes have the one value that is written out.

    Raises:
        NotWrittenError: one has another.
    """
    for name, value in named.items():
        if w.node.attrs.get(name, value) != value:
            raise NotWrittenError(f"has {name}={w.node.attrs[name]}")


def cut(w: NodeWriter, what: str, x: gs.Tensor, start: int, end: int, axis: int) -> gs.Tensor:
    """`x[start:end]` along one axis, in the type of `x`."""
    bounds = [w.integers(f"{what}_{name}", [one]) for name, one in (("from", start), ("to", end), ("along", axis))]
    return w.op("Slice", what, [x, *bounds], dtype=graphs.dtype_of(x))
