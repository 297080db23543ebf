"""The two halves of a compilation as pipelines: what may not change a number, and what lowers the precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Fact, Pass, Pipeline
from qcompiler.passes.branches.merge_branches import MergeBranches
from qcompiler.passes.channels.equalize_channels import EqualizeChannels
from qcompiler.passes.cleanup.eliminate_dead import EliminateDead
from qcompiler.passes.cleanup.eliminate_identities import EliminateIdentities
from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.cleanup.fold_channel_affine import FoldChannelAffine
from qcompiler.passes.cleanup.fold_constants import FoldConstants
from qcompiler.passes.cleanup.fold_ifs import FoldIfs
from qcompiler.passes.cleanup.fold_pad import FoldPad
from qcompiler.passes.cleanup.fuse_hard_swish import FuseHardSwish
from qcompiler.passes.cleanup.inline_functions import InlineFunctions
from qcompiler.passes.cleanup.loosen_squeeze import LoosenSqueeze
from qcompiler.passes.cleanup.name_dimensions import NameDimensions
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from qcompiler.passes.cleanup.split_skip_norm import SplitSkipNorm
from qcompiler.passes.cleanup.unroll_lstm import UnrollLSTM
from qcompiler.passes.cleanup.unshare_weights import UnshareWeights
from qcompiler.passes.foreign.read_trt_quantizers import ReadTrtQuantizers, opset_for
from qcompiler.passes.foreign.write_out_fused import OLDEST, WriteOutFused, is_fused
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.passes.high_precision.store_once import StoreOnce
from qcompiler.passes.layout.cast_bytes import CastBytes
from qcompiler.passes.layout.move_transposes import MoveTransposes
from qcompiler.passes.legalize.convert_qoperator import ConvertQoperator
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.legalize.mend_quantized import MendQuantized
from qcompiler.passes.legalize.release_quantizers import ReleaseQuantizers
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.passes.opsets.spell_axes import SpellAxes
from qcompiler.passes.products.plain_gemm import PlainGemm
from qcompiler.passes.products.split_experts import SplitExperts
from qcompiler.passes.products.turn_products import TurnProducts
from qcompiler.passes.products.unroll_loops import UnrollLoops
from qcompiler.passes.products.write_einsum import WriteEinsum
from qcompiler.passes.products.write_recurrent import WriteRecurrent
from qcompiler.passes.quantize.dynamic_quant import RULE, DynamicQuant
from qcompiler.passes.quantize.flatten_rows import FlattenRows
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.insert_qdq_pairs import InsertQDQPairs
from qcompiler.passes.quantize.quantize_outputs import QuantizeOutputs
from qcompiler.passes.quantize.share_constants import ShareConstants
from qcompiler.passes.standard.write_out_attention import WriteOutAttention
from qcompiler.passes.standard.write_out_rms_norm import WriteOutRmsNorm
from qcompiler.passes.standard.write_out_rotary import WriteOutRotary
from qcompiler.passes.standard.write_out_swish import WriteOutSwish
from qcompiler.passes.standard.write_out_tensor_scatter import WriteOutTensorScatter
from qcompiler.passes.types.infer_shapes import InferShapes
from qcompiler.passes.types.restore_ends import RestoreEnds
from qcompiler.passes.types.unpack_sequences import UnpackSequences
from qcompiler.plan import FittedWeight, Plan
from qcompiler.statistics.ranges import Ranges
from qcompiler.target import DType, Target

if TYPE_CHECKING:
    import numpy as np
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray


def clean_up(target: Target, *, equalize: bool = False) -> Pipeline:
    """What every preset begins with; the equivalence check stands behind each pass. `equalize` is the recipe's key."""
    return Pipeline(
        InlineFunctions(),  # first, because the bodies bring nodes and names of their own
        NameEverything(),
        NameDimensions(),
        NormalizeConstants(),  # Paddle keeps weights in Constant nodes, old exporters among the inputs
        InferShapes(),  # before all that asks for a rank or a type
        RaiseOpset(target.opset),  # before folding, because the new spelling computes shapes that can be folded
        UnpackSequences(),  # PyTorch writes chunks and lists of tensors so
        SpellAxes(),
        WriteOutFused(target),  # in the terms of the new opset
        FoldConstants(),
        *_for_quantized(target),  # what they leave float is then cleaned up as such
        *_for_new_operators(target),
        FoldIfs(),  # PyTorch asks for ranks and sizes that are known
        MergeBranches(),  # decoders without and with a cache in one file
        *_for_branches(target),
        *((WriteRecurrent(),) if target.engine != "onnxruntime" else ()),  # which has fast kernels of its own
        UnrollLoops(),
        FoldConstants(),  # what stood in branches, and slices of stacked weights
        *_PRODUCTS,
        EliminateIdentities(),  # Paddle puts Identity and Cast between a Conv and its bias
        InferShapes(),  # folding makes shapes known, and its nodes come without
        MoveTransposes(),  # TensorFlow has them between a Conv and what belongs to it
        *(() if target.engine == "onnxruntime" else (CastBytes(),)),
        FoldPad(),  # a Pad between producer and Conv would take the Q/DQ pair that belongs at the Conv
        FoldBatchNorm(),
        FoldChannelAffine(),  # the scales, shifts and normalisations that are left between them
        *((FuseHardSwish(), SplitSkipNorm()) if target.engine == "onnxruntime" else ()),
        EliminateDead(),
        UnshareWeights(),  # late, because folding makes weights of its own
        *((EqualizeChannels(),) if equalize else ()),  # on what is left of the convolutions
    )


# Any spelling of a product with a constant, as a MatMul or Gemm that has it on the right. Each leaves work to the next.
_PRODUCTS: tuple[Pass, ...] = (WriteEinsum(), PlainGemm(), TurnProducts(), SplitExperts())


def readable(graph: gs.Graph, target: Target) -> Pipeline:
    """What a file that is built as it came needs where its operators are not ONNX's; nothing where they all are."""
    fused = target.engine != "onnxruntime" and any(map(is_fused, graphs.walk(graph)))
    opset = max(opset_for(graph), OLDEST if fused else 0)
    return Pipeline(
        *((RaiseOpset(opset),) if opset else ()),
        *((WriteOutFused(target),) if fused else ()),
        *((ReadTrtQuantizers(strict=False),) if opset_for(graph) else ()),
        given=frozenset({Fact.NAMED, Fact.CONSTANTS}),
    )


def _for_quantized(target: Target) -> tuple[Pass, ...]:
    """What a model that comes quantized needs for TensorRT: exact forms first; ONNX Runtime takes all that ONNX has."""
    if target.engine == "onnxruntime":
        return ()
    return ConvertQoperator(target), MendQuantized(target), ReleaseQuantizers(target)


def _for_new_operators(target: Target) -> tuple[Pass, ...]:
    """Operators of opset 23 and 24 that TensorRT lacks or takes by half; ONNX Runtime has fast kernels for them.

    TensorRT-RTX 1.7 takes the others in every float type, and compiles them to the same kernels.
    """
    if target.engine == "onnxruntime":
        return ()
    older = (WriteOutRmsNorm(), WriteOutRotary(), WriteOutSwish()) if target.engine == "tensorrt" else ()
    return WriteOutAttention(), WriteOutTensorScatter(), *older


def _for_branches(target: Target) -> tuple[Pass, ...]:
    """What TensorRT needs in the branches of an If that stays; ONNX Runtime takes them as they are."""
    return () if target.engine == "onnxruntime" else (UnrollLSTM(), LoosenSqueeze())


NORMAL = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED, Fact.UNSHARED})


def lowering(
    plan: Plan,
    target: Target,
    ranges: Ranges,
    corrections: Mapping[str, NDArray[np.float32]],
    scales: Mapping[str, NDArray[np.float32]] | None = None,
    io_types: str = "keep",
    storing: Sequence[Pass] = (),
    noisy: Mapping[str, float] | None = None,
    ends: Mapping[str, np.dtype[np.generic]] | None = None,
    fitted: Mapping[str, FittedWeight] | None = None,
) -> Pipeline:
    """From the normalised float graph and its plan to a strongly typed graph that the target takes.

    `storing` are the passes that store weights alone in few bits; `noisy` is as of `HighPrecision`, `ends`
    as of `RestoreEnds`, `fitted` as of `InsertQDQ`.
    """
    dynamic = any(decision.rule == RULE for decision in plan)
    restored = io_types == "keep" or target.high_precision is not DType.FP32  # else FP32 is what was asked for
    static = (
        InsertQDQ(plan, corrections, scales or {}, fitted or {}, shift=not target.unsigned_activations),
        InsertQDQPairs(plan),
    )
    return Pipeline(
        *((DynamicQuant(plan, "integer" if target.engine == "onnxruntime" else "pairs"),) if dynamic else static),
        *((QuantizeOutputs(plan),) if target.quantize_outputs and not dynamic else ()),
        *storing,
        # After Q/DQ, which are FP32 inside: a DequantizeLinear is then told what its consumer computes in.
        HighPrecision(
            target.high_precision,
            ranges=ranges,
            typed_dequantize=target.typed_dequantize,
            io_types=io_types,
            noisy=noisy or {},
        ),
        *((RestoreEnds(ends, target.engine),) if ends and restored else ()),
        StoreOnce(target.high_precision),  # each branch has been typed by itself
        *((FlattenRows(),) if target.engine == "tensorrt-rtx" else ()),  # typed: its tensors have no ranges
        ShareConstants(),  # what was quantized alike is stored once
        # The last word belongs to the target.
        Legalize(target),
        given=NORMAL,
    )
