"""The values that flow through the stages: the float model with what is known of it, the plan for it, its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.deal import Parts
from qcompiler.data.source import Source
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.outliers.llm_int8 import Splits
from qcompiler.outliers.qfep.find import Prefixed
from qcompiler.passes.behind import Unmeasured
from qcompiler.plan import Plan
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.climb import Standing
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.scope import Scope
from qcompiler.planning.search.half_noise import HalfNoise
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.ranges import Ranges
from qcompiler.verification.held_out import Judge
from qcompiler.weight_only.stored import Stored

NOTHING = Candidates((), ())


@dataclass(frozen=True, eq=False)
class Subject:
    """A float model and what is known of it. Whoever changes it returns another one.

    Attributes:
        reference: what results are compared with: the model as it was loaded, with its prefix where one is baked in.
        model: what the stages have made of it so far.
        samples: the data as `model` reads it; None without data.
        parts: the same, dealt: to calibrate, to choose, to judge.
        judge: what results are judged by.
        scope: where layers are looked for that may be quantized.
        axes: which axes of the inputs are a batch, along which feeds are cut into samples.
        layers: those that were found in `model`, and why the others may not be.
        released: why quantizers that the model came with were dropped, by the name of the float tensor.
        seen: what one run over the data has told.
        measured: the model that was run for it, whose tensors its ranges speak of; None where nothing was run.
        standing_out: channels and tokens that stand out, an entry for each activation, as they were observed.
        standing: what everything quantized at once reaches; None where nobody has looked.
        prefix: what stands in front of all texts, and how it was found; None where nobody asked.
        splits: which channels are multiplied apart.
        stored: which weights are stored in few bits; None where nobody asked.
        behind: what nobody can run here, and is written as it came behind the rest; None where there is nothing.
    """

    reference: Model
    model: Model
    samples: Source | None
    judge: Judge
    scope: Scope
    parts: Parts | None = None
    axes: BatchAxes = NO_BATCH
    layers: Candidates = NOTHING
    released: Mapping[str, str] = field(default_factory=dict)
    seen: Observations = field(default_factory=Observations)
    measured: Model | None = None
    standing_out: Sequence[Mapping[str, Any]] = ()
    standing: Standing | None = None
    prefix: Prefixed | None = None
    splits: Splits = field(default_factory=Splits)
    stored: Stored | None = None
    behind: Unmeasured | None = None

    @property
    def inputs(self) -> Inputs:
        """dtype and shape of each input of the model."""
        return inputs_of(self.reference.graph)

    def with_(self, **changes: Any) -> Subject:
        """The same but for some attributes."""
        return dataclasses.replace(self, **changes)

    def editing(self, model: Model, **changes: Any) -> Subject:
        """The subject with another model, whose layers are looked for again."""
        return self.with_(model=model, layers=self.scope.layers(model), **changes)


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan and the model that it speaks of.

    Attributes:
        model: the subject's, with weights that came stored opened to floats, and with products joined again whose
            normal part stays in high precision.
        chosen: the plan and how it was found.
        splits: which channels stay apart.
    """

    model: Model
    chosen: Chosen
    splits: Splits


@dataclass(frozen=True, eq=False)
class Lowered:
    """The plan's graph in the target's types.

    Attributes:
        model: strongly typed, with Q/DQ pairs and stored weights.
        inner: the float model that it was made of, whose inner tensors have the same names.
        plan: with what typing decided about the rest.
        splits: which channels are multiplied apart.
        ranges: of the tensors of `inner`, over all samples; empty where nothing is typed by them.
        half: what rounding to half does to the outputs; None where nothing is rounded to it.
    """

    model: Model
    inner: Model
    plan: Plan
    splits: Splits
    ranges: Ranges = field(default_factory=Ranges)
    half: HalfNoise | None = None
