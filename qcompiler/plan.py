"""The plan: which precision every node gets, and why. Plain data that prints, saves as JSON and can be replayed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.target import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNCONFIRMED: Final = "unconfirmed"  # work that was promised in a quantized type, and that the engine does not show


@dataclass(frozen=True, slots=True)
class Decision:
    """One node's precision.

    Attributes:
        node: unique node name in the lowered graph.
        op: ONNX operator.
        precision: what it computes in.
        rule: stable id of the rule that decided, such as `linear`, `sensitive`, `gemv`, `subgraph`.
        why: one sentence with the figures.
        macs: multiply-accumulates per sample; 0 where the operator has none or nobody knows them.
        figures: numbers behind `why` (SQNR in dB, ranges, shares).
        counted: False where it multiplies and `macs` is not known: shares leave it out.
    """

    node: str
    op: str
    precision: DType
    rule: str
    why: str
    macs: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How one tensor is quantized: symmetric with zero point 0, unless it has a `span`.

    Attributes:
        tensor: name of the float tensor.
        dtype: INT8 or FP8.
        amax: the clipping range in the tensor's own unit, positive; scale = amax / 127 (INT8) or / 448 (FP8).
        calibrator: text form of the calibrator that chose it, or `shared:NAME` where another tensor's range is used.
        observed: largest |x| seen; None where nothing was run.
        span: lowest and highest value of an unsigned grid with a zero point, which is written as such for ONNX Runtime,
            and as a shift in front of the pair for TensorRT; None for the symmetric grid, value = scale · integer.
        whole: every reader of the tensor gets the quantized value, not only the quantized nodes (ONNX Runtime only:
            it fuses a node with what stands behind it).
    """

    tensor: str
    dtype: DType
    amax: float
    calibrator: str
    observed: float | None
    span: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Plan:
    """All of one compilation. It is never changed: what decides more returns another plan.

    Attributes:
        decisions: by node name, in graph order.
        quantizers: of activations, by tensor name.
        axes: of quantized nodes, by name: the axis of the stored weight that has a scale per index; None for a single
            scale.
        reads: of nodes without a weight, by name: which of their inputs are read through a pair (the shortcut of a
            residual Add, the products of an attention).
    """

    decisions: Mapping[str, Decision] = field(default_factory=dict)
    quantizers: Mapping[str, Quantizer] = field(default_factory=dict)
    axes: Mapping[str, int | None] = field(default_factory=dict)
    reads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Takes copies: whoever collected them may go on collecting."""
        for each in fields(self):
            object.__setattr__(self, each.name, dict(getattr(self, each.name)))

    @classmethod
    def of(cls, decisions: Iterable[Decision]) -> Plan:
        """The plan of decisions alone; of several about one node, the last one counts."""
        return cls({one.node: one for one in decisions})

    def __iter__(self) -> Iterator[Decision]:
        """Decisions in graph order."""
        return iter(self.decisions.values())

    def with_(
        self,
        *,
        decisions: Mapping[str, Decision] | None = None,
        quantizers: Mapping[str, Quantizer] | None = None,
        axes: Mapping[str, int | None] | None = None,
        reads: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Plan:
        """The plan with other contents in place of those that are given."""
        return Plan(
            self.decisions if decisions is None else decisions,
            self.quantizers if quantizers is None else quantizers,
            self.axes if axes is None else axes,
            self.reads if reads is None else reads,
        )

    def deciding(self, *decisions: Decision) -> Plan:
        """The plan with these decisions: of a node it speaks of in the place of the old one, others at the end."""
        return self.with_(decisions={**self.decisions, **{one.node: one for one in decisions}})

    def without(self, *nodes: str) -> Plan:
        """The plan without these nodes; quantizers stay, for others may read the same tensors."""
        return self.with_(
            decisions={name: one for name, one in self.decisions.items() if name not in nodes},
            axes={name: axis for name, axis in self.axes.items() if name not in nodes},
            reads={name: read for name, read in self.reads.items() if name not in nodes},
        )

    def ordered(self, nodes: Iterable[str]) -> Plan:
        """The plan with its decisions in the order of these nodes, and what is not among them at the end."""
        places = {name: index for index, name in enumerate(nodes)}
        names = sorted(self.decisions, key=lambda name: places.get(name, len(places)))
        return self.with_(decisions={name: self.decisions[name] for name in names})

    def precision(self, node: str) -> DType | None:
        """What a node computes in; None if the plan does not speak of it."""
        found = self.decisions.get(node)
        return None if found is None else found.precision

    def quantized(self) -> list[Decision]:
        """The nodes that compute in a quantized type."""
        return [decision for decision in self if decision.precision.quantized]

    def share(self, confirmed: Collection[str] | None = None) -> float:
        """Share of the known multiply-accumulates that run quantized, 0..1.

        Args:
            confirmed: names of the nodes that an engine's listing shows in the type they were promised, the others do
                not count as quantized; None where no listing was read.
        """
        total = sum(decision.macs for decision in self)
        kept = [one for one in self.quantized() if confirmed is None or one.node in confirmed]
        return sum(decision.macs for decision in kept) / total if total else 0.0

    def macs_by_precision(self, confirmed: Collection[str] | None = None) -> dict[str, Any]:
        """Multiply-accumulates in all, the share of them that runs quantized (0..1), and how many in each type.

        `promised_share` is the plan's share, whatever an engine made of it. Work that was promised and is not confirmed
        has the type `unconfirmed`. `uncounted` names the nodes whose work nobody knows, which the figures leave out.

        Args:
            confirmed: as in `share`.
        """
        sums = Counter[str]()
        for decision in self:
            missed = decision.precision.quantized and confirmed is not None and decision.node not in confirmed
            sums[UNCONFIRMED if missed else decision.precision.value] += decision.macs
        return {
            "total": sums.total(),
            "quantized_share": self.share(confirmed),
            "promised_share": self.share(),
            "confirmed": confirmed is not None,
            "by_precision": {name: sums[name] for name in sorted(sums) if sums[name]},
            "uncounted": [decision.node for decision in self if not decision.counted],
        }

    def to_json(self) -> str:
        """A stable text form; `from_json` reads it back equal."""
        return json.dumps(
            {
                "decisions": [asdict(decision) for decision in self],
                "quantizers": [asdict(quantizer) for quantizer in self.quantizers.values()],
                "axes": self.axes,
                "reads": self.reads,
            },
            indent=1,
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """Reads what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        decisions = (Decision(**{**row, "precision": DType(row["precision"])}) for row in data["decisions"])
        quantizers = {}
        for row in data["quantizers"]:
            span = None if row.get("span") is None else tuple(row["span"])
            quantizers[row["tensor"]] = Quantizer(**{**row, "dtype": DType(row["dtype"]), "span": span})
        reads = {node: tuple(read) for node, read in data.get("reads", {}).items()}
        return Plan.of(decisions).with_(quantizers=quantizers, axes=data["axes"], reads=reads)


@dataclass(frozen=True, eq=False, slots=True)
class FittedWeight:
    """A weight in INT8 whose integers were fitted to what its layer reads, in place of the nearest ones.

    Attributes:
        values: int8, in the shape of the initializer.
        scales: float32 [channels], positive, one for each index of the candidate's axis.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A linear node that can be quantized.

    Attributes:
        node: its name.
        op: Conv, ConvTranspose, Gemm or MatMul.
        activation: the tensor that gets a per-tensor scale (input 0).
        weight: the initializer that is stored as INT8; input 1 reads it, mostly directly.
        axis: axis of the output channels in that initializer, for a scale each; None for a single scale, where nodes
            between mix that axis with another or the target needs it so.
        chain: names of the nodes (Transpose, Reshape) between the initializer and input 1, in data order.
        scales: of a weight that came stored as INT8, [channels] or []: its integers and scales are kept. `weight` is
            then what its DequantizeLinear writes (see `legalize.open_stored`).
        amax: clipping range of a pair that the activation came with, whose scale is kept; None where there is none.
        known: clipping range that the user gave for the activation; None where it is to be measured.
        fitted: what the weight is in INT8 with a scale for each output channel; None for the nearest integers.
        shifted: its activation goes onto the middle of the grid, and what that adds is taken off the bias behind.
    """

    node: str
    op: str
    activation: str
    weight: str
    axis: int | None
    chain: tuple[str, ...] = ()
    scales: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    amax: float | None = None
    known: float | None = None
    fitted: FittedWeight | None = field(default=None, compare=False, repr=False)
    shifted: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that stays in high precision, by which rule and why."""

    node: str
    op: str
    rule: str
    why: str
