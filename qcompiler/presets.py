"""The two halves of a compilation as pipelines: what may not change a number, and what makes the graph low precision."""

from __future__ import annotations

from qcompiler.pass_ import Fact, Pipeline
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
from qcompiler.plan import Plan
from qcompiler.ranges import Ranges
from qcompiler.target import Target


def float_passes(target: Target) -> Pipeline:
    """Clean-up that every preset begins with; the equivalence gate stands behind each pass."""
    return Pipeline(
        InlineFunctions(),
        # Everything later speaks of nodes by name.
        NameEverything(),
        # Paddle and TensorFlow keep weights in Constant nodes, old exporters among the inputs: per-channel scales
        # need them as initializers.
        NormalizeConstants(),
        # Before any folding, because the converter itself leaves constants and identities behind.
        RaiseOpset(target.opset),
        FoldConstants(),
        EliminateIdentities(),
        # A Pad between producer and Conv would take the Q/DQ pair that belongs at the Conv.
        FoldPad(),
        FoldBatchNorm(),
        FoldChannelAffine(),
        EliminateDead(),
        # Last: folding may have shared or replaced weights.
        UnshareWeights(),
    )


NORMAL = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED, Fact.UNSHARED})


def lowering(plan: Plan, target: Target, ranges: Ranges, *, per_channel: bool = True) -> Pipeline:
    """From the normalised float graph and its plan to a strongly typed graph that the target takes."""
    return Pipeline(
        InsertQDQ(plan=plan, per_channel=per_channel),
        # After Q/DQ, which are FP32 inside: a DequantizeLinear is then told what its consumer computes in.
        HighPrecision(target.high_precision, ranges=ranges, typed_dequantize=target.typed_dequantize),
        # The last word belongs to the target.
        Legalize(target),
        given=NORMAL,
    )
