"""Which tensors of a model will be asked about by the stages that decide, so that one run over the data is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.ir import model as models
from qcompiler.plan import Candidate
from qcompiler.planning.placement import attention, shortcuts
from qcompiler.planning.search import evidence, outputs
from qcompiler.statistics import ranges
from qcompiler.statistics.points import Points
from qcompiler.target import DType, Target


@dataclass(frozen=True, slots=True)
class Watch:
    """Who will ask.

    Attributes:
        target: engines differ in what else than the inputs of layers has a range.
        attention: `float`, `int8` or `fp8`: what attention computes in.
    """

    target: Target
    attention: str = "float"

    def points(self, model: models.Model, found: Sequence[Candidate]) -> Points:
        """What is measured in the one run: all of `tensors`, what stands out in inputs of layers, which way Ifs go.

        Where the rest computes in half, the extremes of every float tensor decide whether it can.

        Args:
            model: the float model, normalised.
            found: its layers that may be quantized.
        """
        axes = {one.activation: 1 if one.op.startswith("Conv") else -1 for one in found}
        flags = evidence.conditions(model.graph)
        typed = () if self.target.high_precision is DType.FP32 else ranges.wanted(model)
        return Points.of(histograms=self.tensors(model, found), outliers=axes, ranges=typed, flags=flags)

    def tensors(self, model: models.Model, found: Sequence[Candidate]) -> list[str]:
        """Names of the tensors whose ranges somebody may ask for; some stand there twice.

        Args:
            model: the float model, normalised.
            found: its layers that may be quantized.
        """
        names = [candidate.activation for candidate in found]
        if self.target.quantize_outputs:
            names += outputs.tensors_for_outputs(model.graph, found)
        names += shortcuts.tensors_for_shortcuts(model.graph, self.target, found)
        if self.attention != "float":
            names += attention.tensors_for_attention(model.graph)
        return names
