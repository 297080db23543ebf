"""What typing knows of a node: its ranges, its formats, what would be lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import element_types, nested
from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import Slots, Types
from qcompiler.ir.operators import PICKS
from qcompiler.numerics.sqnr import energy
from qcompiler.statistics.ranges import Range, Ranges
from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray


MARGIN = 8.0
LOST = 1e-3  # relative error above which a constant counts as lost; rounding alone costs 3e-4
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Format:
    """Largest finite value, smallest normal value, and the integer up to which all integers are exact."""

    largest: float
    normal: float
    exact: int


FORMATS = {DType.FP16: Format(65504.0, 2.0**-14, 2048), DType.BF16: Format(3.3895e38, 2.0**-126, 256)}
NUMPY = {DType.FP16: np.dtype(np.float16), DType.BF16: np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a node stays FP32: the rule's id, a sentence with the figures, and the figures."""

    rule: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class TypingView:
    """What the rules look at.

    Attributes:
        graph: the FP32 graph, Q/DQ pairs possibly in place.
        dtype: FP16 or BF16.
        ranges: as observed.
        types: element types by id(tensor).
        known: ranges that differ from the observed ones by tensor name: logits after their mask has been clamped.
        clamps: bounds that an input is clamped to on its way into half, by (id(node), input index).
        borders: ids of graph inputs and outputs that have the lower type themselves.
        nodes: of the graph and of all nested ones, those of a nested graph behind their owner.
        typed_bodies: ids of the nested graphs of If, Loop and Scan, as far as nothing else is around them.
        homes: the graph that each node stands in, by id(node), over all nested graphs.
    """

    graph: gs.Graph
    dtype: DType
    ranges: Ranges
    types: Types
    known: dict[str, Range] = field(default_factory=dict)
    clamps: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    borders: set[int] = field(default_factory=set)
    homes: dict[int, gs.Graph] = field(init=False)
    nodes: list[gs.Node] = field(init=False)
    typed_bodies: set[int] = field(init=False)
    _outputs: set[int] = field(init=False)
    _losses: dict[int, Loss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Walks the nested graphs once."""
        self.nodes = list(graphs.walk(self.graph))
        self.homes = {id(node): home for node, home in nested.homes(self.graph)}
        self.typed_bodies = set()
        for node in self.nodes:  # owners come before what they nest
            home = self.homes[id(node)]
            if nested.is_typed(node) and (home is self.graph or id(home) in self.typed_bodies):
                self.typed_bodies.update(map(id, graphs.subgraphs(node)))
        self._outputs = {id(tensor) for inner in graphs.graphs(self.graph) for tensor in inner.outputs}

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is an output of the graph or of a nested one."""
        return id(tensor) in self._outputs

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads a tensor, once; None where there are more or none, or where it is an output."""
        return None if self.is_output(tensor) else graphs.only_consumer(self.graph, tensor)

    @property
    def format(self) -> Format:
        """The limits of `dtype`."""
        return FORMATS[self.dtype]

    @property
    def numpy(self) -> np.dtype[Any]:
        """`dtype` as numpy knows it."""
        found: np.dtype[Any] = NUMPY[self.dtype]
        return found

    def slots(self, node: gs.Node) -> Slots:
        """What of the node would change type."""
        return element_types.slots(node, self.graph.opset, self.types, self.dtype)

    def range(self, tensor: gs.Tensor) -> Range | None:
        """What is known of the values of a tensor; Q/DQ and operators that only move values are looked through."""
        for _ in range(16):
            if tensor.name in self.known:
                return self.known[tensor.name]
            if tensor.name in self.ranges:
                return self.ranges[tensor.name]
            node = graphs.producer(tensor)
            if node is None or not (graphs.is_op(node, *PICKS, "QuantizeLinear", "DequantizeLinear", "Cast")):
                return None
            source = node.inputs[0]
            if isinstance(source, gs.Constant):
                return _dequantized_range(node) if node.op == "DequantizeLinear" else None
            tensor = source
        return None

    def loss(self, tensor: gs.Constant) -> Loss:
        """What converting a constant to `dtype` costs; computed once."""
        if id(tensor) not in self._losses:
            self._losses[id(tensor)] = loss_of(graphs.values_of(tensor), self.dtype)
        return self._losses[id(tensor)]


# --- Constants --------------------------------------------------------------------------------------------------------


_TINY = 1e-12  # a sum of squares of which single ones may not be normal numbers in FP32


@dataclass(frozen=True, slots=True)
class Loss:
    """Conversion of a constant: its largest finite |x|, largest absolute error and relative error (in the 2-norm).

    Values too large for the type are not counted in the errors; `largest` tells.
    """

    largest: float
    absolute: float
    relative: float


def loss_of(values: NDArray[Any], dtype: DType) -> Loss:
    """Measures the conversion piece by piece, so that no second copy of a large weight is made."""
    flat = values.reshape(-1)
    largest = absolute = squares = errors = 0.0
    for start in range(0, flat.size, CHUNK):
        piece = flat[start : start + CHUNK].astype(np.float32, copy=False)
        reach = _reach(piece)
        if not math.isfinite(reach):
            piece = piece[np.isfinite(piece)]
            reach = _reach(piece)
        with np.errstate(over="ignore", under="ignore"):
            error = piece - piece.astype(NUMPY[dtype]).astype(np.float32)
        if not math.isfinite(_reach(error)):
            error[~np.isfinite(error)] = 0.0
        largest, absolute = max(largest, reach), max(absolute, _reach(error))
        squares, errors = squares + _squares(piece), errors + _squares(error)
    return Loss(largest, absolute, math.sqrt(errors / squares) if squares else 0.0)


def _reach(values: NDArray[np.float32]) -> float:
    """The largest |x|; 0 of nothing."""
    return float(max(values.max(), -values.min())) if values.size else 0.0


def _squares(values: NDArray[np.float32]) -> float:
    """Their sum; in double precision where they are too small for any other."""
    found = energy(values)
    return found if found > _TINY else float(np.sum(np.square(values, dtype=np.float64)))


def _dequantized_range(node: gs.Node) -> Range | None:
    """An upper bound on a dequantized constant: largest integer times largest scale."""
    scale = node.inputs[1]
    if not isinstance(scale, gs.Constant) or not isinstance(node.inputs[0], gs.Constant):
        return None
    stored = graphs.values_of(node.inputs[0])
    if not stored.size:
        return Range(0.0, 0.0)
    bound = max(abs(float(stored.min())), abs(float(stored.max()))) * float(graphs.values_of(scale).max())
    return Range(-bound, bound)
