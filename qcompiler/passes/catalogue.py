"""The passes, one rewrite a file; `ALL` names each of them, in the order in which a model meets them."""

from __future__ import annotations

from qcompiler.passes.base import Pass
from qcompiler.passes.branches.merge_branches import MergeBranches
from qcompiler.passes.channels.equalize_channels import EqualizeChannels
from qcompiler.passes.channels.follow_scales import FollowScales
from qcompiler.passes.channels.llm_int8 import LlmInt8
from qcompiler.passes.channels.smooth_quant import SmoothQuant
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
from qcompiler.passes.fixing.fix_inputs import FixInputs
from qcompiler.passes.fixing.fix_shapes import FixShapes
from qcompiler.passes.foreign.read_trt_quantizers import ReadTrtQuantizers
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.passes.high_precision.store_once import StoreOnce
from qcompiler.passes.layout.cast_bytes import CastBytes
from qcompiler.passes.layout.move_transposes import MoveTransposes
from qcompiler.passes.legalize.convert_qoperator import ConvertQoperator
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.legalize.mend_quantized import MendQuantized
from qcompiler.passes.legalize.open_stored import OpenStored
from qcompiler.passes.legalize.release_quantizers import ReleaseQuantizers
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.passes.opsets.spell_axes import SpellAxes
from qcompiler.passes.products.plain_gemm import PlainGemm
from qcompiler.passes.products.split_experts import SplitExperts
from qcompiler.passes.products.turn_products import TurnProducts
from qcompiler.passes.products.unroll_loops import UnrollLoops
from qcompiler.passes.products.write_einsum import WriteEinsum
from qcompiler.passes.products.write_recurrent import WriteRecurrent
from qcompiler.passes.qfep.bake_prefix import BakePrefix
from qcompiler.passes.quantize.dynamic_quant import DynamicQuant
from qcompiler.passes.quantize.flatten_rows import FlattenRows
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.insert_qdq_pairs import InsertQDQPairs
from qcompiler.passes.quantize.matmul_nbits import MatmulNbits
from qcompiler.passes.quantize.quantize_outputs import QuantizeOutputs
from qcompiler.passes.quantize.remove_qdq import RemoveQDQ
from qcompiler.passes.quantize.share_constants import ShareConstants
from qcompiler.passes.quantize.store_tables import StoreTables
from qcompiler.passes.quantize.weight_only import WeightOnly
from qcompiler.passes.standard.write_out_attention import WriteOutAttention
from qcompiler.passes.standard.write_out_rms_norm import WriteOutRmsNorm
from qcompiler.passes.standard.write_out_rotary import WriteOutRotary
from qcompiler.passes.standard.write_out_swish import WriteOutSwish
from qcompiler.passes.standard.write_out_tensor_scatter import WriteOutTensorScatter
from qcompiler.passes.types.bound_factors import BoundFactors
from qcompiler.passes.types.infer_shapes import InferShapes
from qcompiler.passes.types.keep_guards import KeepGuards
from qcompiler.passes.types.restore_ends import RestoreEnds
from qcompiler.passes.types.unpack_sequences import UnpackSequences
from qcompiler.passes.types.widen_floats import WidenFloats

ALL: tuple[type[Pass], ...] = (
    FixShapes,
    FixInputs,
    InlineFunctions,
    BoundFactors,
    KeepGuards,
    WidenFloats,
    NameEverything,
    NameDimensions,
    NormalizeConstants,
    InferShapes,
    RaiseOpset,
    UnpackSequences,
    SpellAxes,
    ReadTrtQuantizers,
    WriteOutFused,
    FoldConstants,
    ConvertQoperator,
    MendQuantized,
    ReleaseQuantizers,
    WriteOutAttention,
    WriteOutTensorScatter,
    WriteOutRmsNorm,
    WriteOutRotary,
    WriteOutSwish,
    FoldIfs,
    MergeBranches,
    UnrollLSTM,
    LoosenSqueeze,
    WriteRecurrent,
    UnrollLoops,
    WriteEinsum,
    PlainGemm,
    TurnProducts,
    SplitExperts,
    EliminateIdentities,
    MoveTransposes,
    CastBytes,
    FoldPad,
    FoldBatchNorm,
    FoldChannelAffine,
    FuseHardSwish,
    SplitSkipNorm,
    EliminateDead,
    UnshareWeights,
    EqualizeChannels,
    BakePrefix,
    SmoothQuant,
    FollowScales,
    LlmInt8,
    OpenStored,
    InsertQDQ,
    InsertQDQPairs,
    DynamicQuant,
    QuantizeOutputs,
    WeightOnly,
    StoreTables,
    MatmulNbits,
    HighPrecision,
    RestoreEnds,
    StoreOnce,
    FlattenRows,
    ShareConstants,
    RemoveQDQ,
    Legalize,
)

__all__ = [
    "ALL",
    "BakePrefix",
    "BoundFactors",
    "ConvertQoperator",
    "DynamicQuant",
    "EliminateDead",
    "EliminateIdentities",
    "EqualizeChannels",
    "FixInputs",
    "FixShapes",
    "FlattenRows",
    "FoldBatchNorm",
    "FoldChannelAffine",
    "FoldConstants",
    "FoldIfs",
    "FoldPad",
    "FollowScales",
    "FuseHardSwish",
    "HighPrecision",
    "InferShapes",
    "InlineFunctions",
    "InsertQDQ",
    "InsertQDQPairs",
    "KeepGuards",
    "Legalize",
    "LlmInt8",
    "LoosenSqueeze",
    "MatmulNbits",
    "MendQuantized",
    "MergeBranches",
    "NameDimensions",
    "NameEverything",
    "NormalizeConstants",
    "OpenStored",
    "PlainGemm",
    "QuantizeOutputs",
    "RaiseOpset",
    "ReadTrtQuantizers",
    "ReleaseQuantizers",
    "RemoveQDQ",
    "RestoreEnds",
    "ShareConstants",
    "SmoothQuant",
    "SpellAxes",
    "SplitExperts",
    "SplitSkipNorm",
    "StoreOnce",
    "StoreTables",
    "TurnProducts",
    "UnpackSequences",
    "UnrollLSTM",
    "UnrollLoops",
    "UnshareWeights",
    "WeightOnly",
    "WidenFloats",
    "WriteEinsum",
    "WriteOutAttention",
    "WriteOutFused",
    "WriteOutRmsNorm",
    "WriteOutRotary",
    "WriteOutSwish",
    "WriteOutTensorScatter",
    "WriteRecurrent",
]
