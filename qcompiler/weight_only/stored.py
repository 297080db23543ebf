"""What the weight-only stage decided: each stored weight with what it costs, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.numerics.blocks import Blocks
from qcompiler.plan import Refusal
from qcompiler.weight_only.storable import StorableLayer, WeightOnlyOptions


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One stored weight and what it costs.

    Attributes:
        layer: which product, in which form.
        blocks: the integers and their scales.
        method: how it was rounded.
        weight_db: SQNR of the weight alone.
        output_db: SQNR of the layer's outputs with it; None where nothing was observed.
        gain_db: how much better that is than rounding to nearest, None likewise.
        judged: on which rows the two were measured, a word of `row_trials`; empty where nothing was observed.
        rows: that GPTQ may be fitted to; 0 where it was not on offer.
        shrink: how far GPTQ shrank the Hessian; None where it did not round the weight, or was told how to damp.
    """

    layer: StorableLayer
    blocks: Blocks = field(repr=False)
    method: str
    weight_db: float
    output_db: float | None
    gain_db: float | None
    judged: str = ""
    rows: int = 0
    shrink: float | None = None

    @property
    def bytes(self) -> int:
        """What is stored: integers and scales in half, zero points in the integers' own type."""
        bits = 4 if self.layer.format == "int4" else 8
        return -(-bits * (self.blocks.values.size + self.blocks.scales.size) // 8) + 2 * self.blocks.scales.size

    @property
    def known_db(self) -> float:
        """SQNR of the outputs, or of the weight where nothing was observed."""
        return self.weight_db if self.output_db is None else self.output_db

    def errs(self) -> str:
        """What it costs, as the end of a sentence."""
        if self.output_db is None:
            return f"the weight reaches {self.weight_db:.1f} dB"
        known = self.method != "rtn" and self.gain_db is not None
        gain = f", {self.gain_db:+.1f} dB over rounding to nearest" if known else ""
        judged = f" ({self.judged})" if self.judged else ""
        return f"its outputs reach {self.output_db:.1f} dB{gain}{judged}"

    def figures(self) -> dict[str, float]:
        """What is known and finite, in dB to three digits."""
        found = {"weight_db": self.weight_db, "output_db": self.output_db, "gain_db": self.gain_db}
        return {key: round(value, 3) for key, value in found.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True, eq=False)
class Stored:
    """Everything that the stage decided.

    Attributes:
        options: what was asked for.
        method: how weights were rounded; `auto` where each layer has its own.
        weights: of the stored layers, by node, in graph order.
        refused: the other linear nodes.
        scaled: by activation, the gain in dB of the scaling that AWQ folded into its producer.
        unscaled: by activation, why AWQ left it.
        restored: by node, layers that went back to high precision for a gate.
        macs: of linear nodes, by name; empty without data.
        tables: nodes that gather from an embedding that is stored in INT8.
    """

    options: WeightOnlyOptions
    method: str
    weights: Mapping[str, StoredWeight]
    refused: tuple[Refusal, ...] = ()
    scaled: Mapping[str, float] = field(default_factory=dict)
    unscaled: Mapping[str, str] = field(default_factory=dict)
    restored: Mapping[str, StoredWeight] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    def twins(self) -> dict[str, str]:
        """For each such node the product that the same numbers are the stored weight of; empty where there is none."""
        tied = {one.layer.tied: name for name, one in self.weights.items() if one.layer.tied}
        return {name: tied.get(name, "") for name in self.tables}

    def blocks(self) -> dict[str, Blocks]:
        """What the lowering stores, by node."""
        return {name: one.blocks for name, one in self.weights.items()}
