"""The result on all samples: where the float model is finite, it must be finite too.

Samples that need not be run are not (`statistics.farthest`). Where one that is run fails, all of them are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.finite import finite, first_not_finite, flat, refuse_nan
from qcompiler.runtime.stream import OpenModel
from qcompiler.verification import emulation
from qcompiler.verification.metric import loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finiteness:
    """What became of all samples.

    Attributes:
        samples: how many there were.
        failing: indices of those on which the result is NaN or infinite somewhere where float is a number.
        output: name of the first output that is so; empty where none is.
        node: name of the node of the result that computes the first such value; empty where none is found.
        run: how many of the samples were run; the others stay, in every tensor, between those, or so far below what
            its type holds that they cannot fail where no other does. None for all of them.
        why_all: why all of them had to be; empty where they had not.
    """

    samples: int
    failing: tuple[int, ...] = ()
    output: str = ""
    node: str = ""
    run: int | None = None
    why_all: str = ""

    def __str__(self) -> str:
        """A sentence, for a verdict or an error."""
        if not self.failing and self.run is not None:
            return (
                f"the result is finite on the {self.run} of {self.samples} samples that reach farthest, and no other "
                "comes near to what its types hold"
            )
        if not self.failing:
            return f"the result is finite on all {self.samples} samples on which the float model is"
        began = f"; '{self.node}' is the first node that computes one" if self.node else ""
        return (
            f"the result has NaN or infinite values where the float model has numbers, on {len(self.failing)} of "
            f"{self.samples} samples (first on sample {self.failing[0]}, in output '{self.output}'){began}"
        )


def finite_on_all(
    float_model: str | Path | models.Model,
    lowered: str | Path | models.Model,
    source: Iterable[Feeds],
    *,
    optimize: bool = True,
    place: Callable[[int], int] | None = None,
    advance: Callable[[float], None] | None = None,
) -> Finiteness:
    """Runs the result over all samples, with its half precision emulated, and the float model where that is in doubt.

    Infinities and NaN that float has in the same place are meant, and no failure.

    Args:
        float_model: the reference.
        lowered: the result, typed.
        source: all samples; read once.
        optimize: let ONNX Runtime optimise the result.
        place: where a sample stands in the data as the user gave it, by its index here; None where that is the same.
        advance: called with 1 behind each sample.

    Raises:
        DataError: a feed does not fit.
        ModelError: ONNX Runtime refuses one of the models, a node fails, or the float model itself gives NaN that is
            not meant to be; the message names the sample and the node where that arises.
    """
    plain, result = loaded(float_model), loaded(lowered)
    candidate = emulation.runnable(result, half=True)
    session = OpenModel(candidate, optimize=optimize)
    reference: OpenModel | None = None
    count, failing, output, node = 0, list[int](), "", ""
    for at, feed in enumerate(source):
        index = at if place is None else place(at)
        count += 1
        found = session.run(feed)
        if not all(finite(part) for value in found.values() for part in flat(value)):
            reference = reference or OpenModel(plain)
            expected = reference.run(feed)
            refuse_nan(plain.graph, feed, expected, index)
            bad = _first_bad(expected, found)
            if bad and not failing:
                output, node = bad, _blamed(result, candidate, feed)
            failing += [index] if bad else []
        if advance is not None:
            advance(1)
    return Finiteness(count, tuple(failing), output, node)


def _first_bad(expected: Feeds, found: Feeds) -> str:
    """The first output that is not finite where it is expected to be; empty where there is none."""
    for name, value in expected.items():
        for one, other in zip(flat(value), flat(found[name]), strict=False):
            if _worse(one, other):
                return name
    return ""


def _worse(expected: NDArray[Any], found: NDArray[Any]) -> bool:
    if expected.dtype.kind != "f" or found.dtype.kind != "f":
        return False
    if expected.shape != found.shape:
        return not finite(found) and finite(expected)
    return bool(np.any(np.isfinite(expected) & ~np.isfinite(found)))


def _blamed(result: models.Model, candidate: models.Model, feed: Feeds) -> str:
    """The node of the result; what the emulation put behind it stands for it."""
    own = {node.name for node in graphs.walk(result.graph)}
    node = first_not_finite(candidate.graph, feed)
    while node is not None and node.name not in own:
        node = graphs.producer(node.inputs[0]) if node.inputs else None
    return "" if node is None else str(node.name)
