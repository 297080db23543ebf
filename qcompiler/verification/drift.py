"""Where a quantized graph leaves its float original, in graph order, and which layers are to blame.

What is compared and how is told in `taps`: the total error of a layer, and its *own* error, which is what the layer
still does wrong when its float twin is given the same inputs. A layer *drifts* when

    own SQNR < LIMIT_DB,   or   own SQNR < min(SQNR of the nearest tapped tensors before it, usual SQNR) - DROP_DB

that is, when its own error is large, or much larger than what it was given and than what is usual. A layer behind a
broken one has a large error too, and is not named. Usual is the median over the quantized layers, and FRESH_DB at most:
a layer that costs no more than INT8 does, or than INT4 does in a model of INT4, is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from qcompiler.ir import model as models
from qcompiler.numerics.sqnr import decibel
from qcompiler.verification.suspects import FRESH_DB, Suspect, find_suspects
from qcompiler.verification.taps import Measured, find_taps, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray


LIMIT_DB: Final = 12.0
DROP_DB: Final = 6.0
_ROUNDED_DB: Final = 50.0  # an own SQNR below it is one of a quantized layer
_ENOUGH: Final = 4  # layers that show what is usual


@dataclass(frozen=True, slots=True)
class TappedLayer:
    """One tapped tensor.

    Attributes:
        tensor: its name in both graphs.
        node: the node of the float graph that writes it, and `op`, its operator.
        sqnr_db: SQNR in dB against the float graph; infinite where both agree to the bit.
        before_db: the worst SQNR of the nearest tapped tensors that it depends on; infinite where there are none.
        drifts: whether the error begins here, as the module says.
        own_db: SQNR in dB against the float layer on the same inputs: what it adds itself. Of all values, or the mean
            over its channels where that is worse.
        strange: it computes something else: on the same inputs its noise is half the power, or it is not finite.
    """

    tensor: str
    node: str
    op: str
    sqnr_db: float
    before_db: float
    drifts: bool
    own_db: float = math.inf
    strange: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What was seen inside.

    Attributes:
        layers: in graph order. Sums and outputs of the graph are among them only where the error begins there.
        suspects: the layers that the error of the outputs begins at, the one that is most to blame first; three at
            most, none where the outputs are close to float and no layer computes something else.
    """

    layers: tuple[TappedLayer, ...] = ()
    suspects: tuple[Suspect, ...] = ()


def trace(
    float_model: models.Model,
    quantized: models.Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    most: int = 96,
    close_db: float = FRESH_DB,
    asked: Callable[[Trace], bool] | None = None,
) -> Trace:
    """Compares inner tensors on a few feeds.

    Args:
        float_model: in the terms of the quantized one: a tensor of the same name means the same (see `alignment`).
        quantized: what is compared.
        feeds: all are run; suspects are looked for on the first two.
        most: layers that are looked at, evenly spaced over the graph.
        close_db: SQNR in dB of the outputs from which on nobody is to blame.
        asked: by what the layers have shown, whether anybody asks for suspects, whose search takes as long again; None
            for always.

    Raises:
        ModelError: a graph cannot be run.
    """
    found = measure(float_model, quantized, feeds, find_taps(float_model.graph, quantized.graph, most))
    layers = _layers(found)
    seen = Trace(tuple(layers))
    if asked is not None and not asked(seen):
        return seen
    begins = [layer.tensor for layer in layers if layer.drifts]
    suspects = find_suspects(float_model, quantized, feeds, found, begins, close_db=close_db)
    return Trace(seen.layers, suspects)


def compare_layers(
    float_model: models.Model, quantized: models.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], *, most: int = 96
) -> tuple[TappedLayer, ...]:
    """The layers of `trace`, without looking for suspects."""
    taps = find_taps(float_model.graph, quantized.graph, most)
    return tuple(_layers(measure(float_model, quantized, feeds, taps)))


def _layers(found: Measured) -> list[TappedLayer]:
    owns = {tap.name: decibel(found.own[tap.name].level, least=0.0) for tap in found.taps}
    rounded = [own for tap in found.taps if tap.layer and (own := owns[tap.name]) < _ROUNDED_DB]
    usual = min(median(rounded), FRESH_DB) if len(rounded) >= _ENOUGH else FRESH_DB
    layers = []
    for tap in found.taps:
        total, own = found.total[tap.name].db, owns[tap.name]
        before = min((found.total[name].db for name in found.before[tap.name]), default=math.inf)
        drifts = own < LIMIT_DB or own < min(before, usual) - DROP_DB
        if tap.layer or drifts:
            strange = found.own[tap.name].strange
            layers.append(TappedLayer(tap.name, tap.node.name, tap.node.op, total, before, drifts, own, strange))
    return layers
