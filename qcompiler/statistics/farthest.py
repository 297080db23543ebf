"""Which samples a result must be run on before it can be called finite on all of them.

Ranges are observed over all samples, each end with the first sample that has it. A value of a result in half can
overflow only where its range comes near to what its type holds. So a sample is needed where it reaches farthest in a
tensor whose range, `MARGIN` times over, does not fit, or where it comes nearest to a pole: the zero of a divisor, of a
logarithm, of a root. All others lie between those that are needed, or far below what the types hold. What cannot be
told in this way is no matter of ranges: then every sample is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import element_types, qdq
from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import CHANNEL_NORMS, LINEAR, MOVES, PICKS
from qcompiler.statistics.ranges import Range, Ranges

MARGIN: Final = 8.0  # as in the typing: a value of the result may be so much larger than any that was observed
_LIMITS: Final = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": float(np.finfo(np.float32).max)}
_STORED: Final = {  # the largest magnitude
    "int4": 8.0, "uint4": 15.0, "int8": 128.0, "uint8": 255.0, "int32": 2.0**31,
    "float4_e2m1fn": 6.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0,
}  # fmt: skip
_MASKS: Final = ("Softmax", "LogSoftmax")
_NORMS: Final = ("LayerNormalization", "RMSNormalization", *CHANNEL_NORMS)
# What gives finite values of finite ones unless these are too large, which the range of the output tells
_SAFE: Final = frozenset(
    {
        *LINEAR, *MOVES, *PICKS, *_MASKS, *_NORMS,
        "Abs", "Add", "Atan", "AveragePool", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Elu", "Erf", "Exp",
        "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Mean",
        "Min", "Mish", "Mul", "Neg", "PRelu", "ReduceMean", "ReduceSum", "Relu", "Round", "Selu", "Sigmoid", "Sign",
        "Sin", "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "Where",
    }
)  # fmt: skip
_READS: Final = {"QuantizeLinear", "Shape", "Size", "Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"}
_PICKING: Final = PICKS | {"Concat", "Tile", "Where", "Cast"}
_POLES: Final = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0, "Pow": 0}
_ONE_SIDED: Final = ("Log", "Sqrt", "Pow")  # nothing below zero


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a tensor of the result can hold: `MARGIN` times what was observed, or what bounds it exactly.

    Attributes:
        low: no value is below it, and none above `high`.
        seen: what was observed of it, or of what it is picked from; None where nothing was.
    """

    low: float
    high: float
    seen: Range | None = None

    @staticmethod
    def of(seen: Range) -> _Reach:
        most = MARGIN * seen.absmax
        return _Reach(-most, most, seen)

    def __or__(self, other: _Reach) -> _Reach:
        seen = None if self.seen is None or other.seen is None else self.seen | other.seen
        return _Reach(min(self.low, other.low), max(self.high, other.high), seen)

    def __and__(self, other: _Reach) -> _Reach:
        return _Reach(max(self.low, other.low), min(self.high, other.high), self.seen)


@dataclass(frozen=True)
class Farthest:
    """The samples that are needed.

    Attributes:
        places: of them in the data; empty where none reaches far.
        why_all: why all samples are needed instead; empty where they are not.
    """

    places: frozenset[int] = frozenset()
    why_all: str = ""


class _EveryError(Exception):
    """All samples are needed; the message says why."""


def farthest(result: gs.Graph, ranges: Ranges) -> Farthest:
    """The samples that a result must be run on.

    Args:
        result: in the target's types, with Q/DQ pairs; its tensors have the names of those that were observed.
        ranges: of the float model that it was made of, over all samples.
    """
    try:
        return Farthest(frozenset(_Walk(result, ranges).places()))
    except _EveryError as reason:
        return Farthest(why_all=str(reason))


class _Walk:
    """Goes through the nodes, in order, and knows the ranges of what they read."""

    def __init__(self, graph: gs.Graph, ranges: Ranges) -> None:
        self._graph, self._ranges, self._types = graph, ranges, element_types.infer_all(graph)
        self._found: dict[int, _Reach] = {}
        self._places: set[int] = set()

    def places(self) -> set[int]:
        for tensor in self._graph.inputs:
            self._floats(tensor, None)
        for node in self._graph.nodes:
            self._node(node)
        return self._places

    def _node(self, node: gs.Node) -> None:
        if graphs.subgraphs(node) or not (graphs.is_standard(node) or qdq.is_q(node) or qdq.is_dq(node)):
            raise _EveryError(f"'{node.name}' ({node.op}) is not looked into")
        floats = [tensor for tensor in node.outputs if tensor.name and self._is_float(tensor)]
        if not floats and not any(self._is_float(tensor) for tensor in node.inputs):
            return
        if len(floats) < sum(bool(tensor.name) for tensor in node.outputs):
            if node.op not in _READS:
                raise _EveryError(f"'{node.name}' ({node.op}) makes other values than floats of floats")
            if node.op == "QuantizeLinear":
                self._scaled(node)
            return
        if node.op in _POLES:
            self._pole(node)
        elif node.op not in _SAFE:
            raise _EveryError(f"'{node.name}' ({node.op}) can make values that are not finite of any others")
        if node.op in _MASKS:
            self._unmasked(node)
        if node.op in _NORMS and not float(node.attrs.get("epsilon", 1e-5)) > 0:
            raise _EveryError(f"'{node.name}' ({node.op}) has an epsilon of 0")
        for tensor in node.inputs:
            self._constant(tensor)
        for tensor in floats:
            self._floats(tensor, node)

    def _floats(self, tensor: gs.Tensor, node: gs.Node | None) -> None:
        """Notes what a float tensor can hold, and the samples that reach beyond its type."""
        if not self._is_float(tensor):
            return
        seen = self._observed(tensor)
        bounds = (None if seen is None else _Reach.of(seen), None if node is None else self._made(node))
        known = [one for one in bounds if one is not None]
        if not known:
            raise _EveryError(f"nothing is known of the range of '{tensor.name}'")
        reach = self._found[id(tensor)] = reduce(and_, known)
        limit = self._limit(tensor)
        if -limit <= reach.low and reach.high <= limit:
            return
        if reach.seen is None:
            raise _EveryError(f"'{tensor.name}' is bounded by more than its type holds, and was not observed")
        for value, place in ((reach.seen.low, reach.seen.low_at), (reach.seen.high, reach.seen.high_at)):
            if MARGIN * abs(value) > limit:
                self._needed(tensor, value, place)

    def _observed(self, tensor: gs.Tensor) -> Range | None:
        """By the name of the tensor, or of the same values in another type, on either side of a Cast or beside it."""
        maker = graphs.producer(tensor)
        same = [tensor, *([maker.inputs[0]] if maker is not None and graphs.is_op(maker, "Cast") else [])]
        casts = (node.outputs[0] for one in same for node, _ in graphs.consumers(one) if graphs.is_op(node, "Cast"))
        names = [one.name for one in (*same, *casts)]
        return next((self._ranges[name] for name in names if name in self._ranges), None)

    def _made(self, node: gs.Node) -> _Reach | None:
        """What bounds that which a node gives, where it stores, picks or clamps what it reads, or adds two."""
        if qdq.is_dq(node):
            return self._scaled(node)
        read = [self._reach(tensor) for tensor in node.inputs if self._is_float(tensor)]
        known = [one for one in read if one is not None]
        if not known or len(known) < len(read):
            return None
        if graphs.is_op(node, "Add") and len(known) == 2:
            return _Reach(sum(one.low for one in known), sum(one.high for one in known))
        if graphs.is_op(node, "Max", "Min"):
            best = max if node.op == "Max" else min
            seen = self._clamped([self._range(tensor) for tensor in node.inputs], node)
            return _Reach(best(one.low for one in known), best(one.high for one in known), seen)
        return reduce(or_, known) if node.op in _PICKING else None

    @staticmethod
    def _clamped(read: Sequence[Range | None], node: gs.Node) -> Range | None:
        """What was observed of a tensor behind a clamp by a constant; the samples at its ends are those before it."""
        constant = [graphs.is_constant(tensor) for tensor in node.inputs]
        if len(read) != 2 or constant[0] == constant[1]:
            return None
        seen, bound = (read[1], read[0]) if constant[0] else (read[0], read[1])
        if seen is None or bound is None:
            return None
        best = max if node.op == "Max" else min
        return Range(best(seen.low, bound.low), best(seen.high, bound.high), seen.low_at, seen.high_at)

    def _scaled(self, node: gs.Node) -> _Reach:
        """What a Q or DQ can store; a larger value is clipped."""
        scale, zero, stored = qdq.scale_of(node), qdq.zero_point_of(node), qdq.stored_type(node)
        if scale is None or not scale.size or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise _EveryError(f"'{node.name}' ({node.op}) has a scale that is not constant, finite and above 0")
        if stored.name not in _STORED:
            raise _EveryError(f"'{node.name}' ({node.op}) stores {stored.name}")
        moved = 0.0 if zero is None else float(np.abs(zero.astype(np.float64)).max())
        reach = (_STORED[stored.name] + moved) * float(scale.astype(np.float64).max())
        return _Reach(-reach, reach)

    def _pole(self, node: gs.Node) -> None:
        """The sample nearest to where a node gives an infinity, or NaN."""
        tensor = node.inputs[_POLES[node.op]]
        if node.op == "Pow" and self._whole_power(node):
            return
        seen = self._range(tensor)
        if seen is None or not seen.nearest_zero > 0 or (node.op in _ONE_SIDED and seen.low < 0):
            raise _EveryError(f"nothing keeps '{tensor.name}' away from 0, which '{node.name}' ({node.op}) reads")
        if not graphs.is_constant(tensor):
            low = seen.low > 0
            self._needed(tensor, seen.low if low else seen.high, seen.low_at if low else seen.high_at)

    @staticmethod
    def _whole_power(node: gs.Node) -> bool:
        power = graphs.constant_value(node.inputs[1])
        return power is not None and bool(np.all((power >= 0) & (power == np.floor(power))))

    def _unmasked(self, node: gs.Node) -> None:
        """A row of nothing but masked scores has no largest one that is a number, unless masks are numbers as well."""
        tensor = node.inputs[0]
        reach = self._reach(tensor)
        if reach is None or reach.low < -self._limit(tensor):
            raise _EveryError(f"'{tensor.name}', which '{node.name}' ({node.op}) reads, may be masked throughout")

    def _needed(self, tensor: gs.Tensor, value: float, place: int) -> None:
        if not math.isfinite(value) or place < 0:
            raise _EveryError(f"'{tensor.name}' reaches {value:.4g}, and nobody knows on which sample")
        self._places.add(place)

    def _constant(self, tensor: gs.Tensor) -> None:
        values = graphs.constant_value(tensor)
        if values is not None and self._is_float(tensor) and not np.isfinite(values.astype(np.float32)).all():
            raise _EveryError(f"the constant '{tensor.name}' is not finite throughout")

    def _range(self, tensor: gs.Tensor) -> Range | None:
        values = graphs.constant_value(tensor)
        if values is not None:
            return Range(float(values.min()), float(values.max())) if values.size else None
        reach = self._found.get(id(tensor))
        return None if reach is None else reach.seen

    def _reach(self, tensor: gs.Tensor) -> _Reach | None:
        """Of a constant, exactly."""
        if graphs.constant_value(tensor) is None:
            return self._found.get(id(tensor))
        exact = self._range(tensor)
        return None if exact is None else _Reach(exact.low, exact.high, exact)

    def _is_float(self, tensor: gs.Tensor) -> bool:
        dtype = self._types.get(id(tensor))
        return dtype is not None and dtype.name in _LIMITS

    def _limit(self, tensor: gs.Tensor) -> float:
        return _LIMITS[self._types[id(tensor)].name]
