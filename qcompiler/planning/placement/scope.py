"""What of a model may be quantized at all, as one value that all who edit the model can ask again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import model as models
from qcompiler.plan import Refusal
from qcompiler.planning.placement import candidates, known
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.target import Target


@dataclass(frozen=True, slots=True)
class Scope:
    """Where layers are looked for.

    Attributes:
        target: what is quantized differs between engines.
        keep: regular expressions; a node whose name one of them matches anywhere stays in high precision.
        quantizes: whether activations are quantized at all.
        unseen: layers that the data has shown too little of (see `planning.search.evidence`).
        ranges: what the user knows of tensors, by name, such as from a calibration table.
    """

    target: Target
    keep: tuple[str, ...] = ()
    quantizes: bool = True
    unseen: tuple[Refusal, ...] = ()
    ranges: Mapping[str, Span] = field(default_factory=dict, hash=False)

    def layers(self, model: models.Model) -> Candidates:
        """What the structural rules let through and what they refuse, in graph order.

        Where nothing is to be quantized, only what came quantized is refused.
        """
        layers = candidates.find_candidates(model.graph, self.target, self.keep)
        if self.quantizes:
            layers = known.told(layers, model.graph, self.ranges)
            there = {one.node for one in layers.found}
            return layers.refusing(one for one in self.unseen if one.node in there)
        # the other refusals say what quantizing stopped
        return Candidates((), tuple(one for one in layers.refused if one.rule in candidates.CAME))
