"""What of a model may be quantized at all, as one value that all who edit the model can ask again."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.ir import model as models
from qcompiler.plan import Refusal
from qcompiler.planning.placement import candidates
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
    """

    target: Target
    keep: tuple[str, ...] = ()
    quantizes: bool = True
    unseen: tuple[Refusal, ...] = ()

    def layers(self, model: models.Model) -> Candidates:
        """What the structural rules let through and what they refuse, in graph order.

        Where nothing is to be quantized, only what came quantized is refused.
        """
        layers = candidates.find_candidates(model.graph, self.target, self.keep)
        if self.quantizes:
            known = {one.node for one in layers.found}
            return layers.refusing(one for one in self.unseen if one.node in known)
        # the other refusals say what quantizing stopped
        return Candidates((), tuple(one for one in layers.refused if one.rule in candidates.CAME))
