"""The passes, one rewrite a file; `ALL` names each of them, `float_passes` is the clean-up that all presets share."""

from __future__ import annotations

from qcompiler.pass_ import Pass
from qcompiler.passes.eliminate_dead import EliminateDead
from qcompiler.passes.eliminate_identities import EliminateIdentities
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_channel_affine import FoldChannelAffine
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fold_pad import FoldPad
from qcompiler.passes.high_precision import HighPrecision
from qcompiler.passes.inline_functions import InlineFunctions
from qcompiler.passes.insert_qdq import InsertQDQ
from qcompiler.passes.legalize import Legalize
from qcompiler.passes.name_everything import NameEverything
from qcompiler.passes.normalize_constants import NormalizeConstants
from qcompiler.passes.raise_opset import RaiseOpset
from qcompiler.passes.unshare_weights import UnshareWeights

ALL: tuple[type[Pass], ...] = (
    InlineFunctions,
    NameEverything,
    NormalizeConstants,
    RaiseOpset,
    FoldConstants,
    EliminateIdentities,
    FoldPad,
    FoldChannelAffine,
    FoldBatchNorm,
    EliminateDead,
    UnshareWeights,
    InsertQDQ,
    HighPrecision,
    Legalize,
)


def float_passes(opset: int) -> tuple[Pass, ...]:
    """The passes that clean a model up without changing what it computes, in their order.

    Args:
        opset: what the target needs at least.
    """
    return (
        InlineFunctions(),  # first, because the bodies bring nodes and names of their own
        NameEverything(),
        NormalizeConstants(),
        RaiseOpset(opset),  # before folding, because the new spelling computes shapes that can be folded
        FoldConstants(),
        EliminateIdentities(),  # Paddle puts Identity and Cast between a Conv and its bias
        FoldPad(),  # a Pad between producer and Conv would take the Q/DQ pair that belongs at the Conv
        FoldChannelAffine(),  # Conv → Add(bias) → BatchNormalization needs the bias inside first
        FoldBatchNorm(),
        FoldChannelAffine(),  # and some exporters scale again behind the normalisation
        EliminateDead(),
        UnshareWeights(),  # last, because folding makes weights of its own
    )


__all__ = [
    "ALL",
    "EliminateDead",
    "EliminateIdentities",
    "FoldBatchNorm",
    "FoldChannelAffine",
    "FoldConstants",
    "FoldPad",
    "HighPrecision",
    "InlineFunctions",
    "InsertQDQ",
    "Legalize",
    "NameEverything",
    "NormalizeConstants",
    "RaiseOpset",
    "UnshareWeights",
    "float_passes",
]
