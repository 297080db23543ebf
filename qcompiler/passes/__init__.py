"""The passes, one rewrite a file; `ALL` names each of them, in the order in which a model meets them."""

from __future__ import annotations

from qcompiler.pass_ import Pass
from qcompiler.passes.bake_prefix import BakePrefix
from qcompiler.passes.convert_qoperator import ConvertQoperator
from qcompiler.passes.dynamic_quant import DynamicQuant
from qcompiler.passes.eliminate_dead import EliminateDead
from qcompiler.passes.eliminate_identities import EliminateIdentities
from qcompiler.passes.equalize_channels import EqualizeChannels
from qcompiler.passes.flatten_rows import FlattenRows
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_channel_affine import FoldChannelAffine
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fold_ifs import FoldIfs
from qcompiler.passes.fold_pad import FoldPad
from qcompiler.passes.fuse_hard_swish import FuseHardSwish
from qcompiler.passes.high_precision import HighPrecision
from qcompiler.passes.inline_functions import InlineFunctions
from qcompiler.passes.insert_qdq import InsertQDQ
from qcompiler.passes.insert_qdq_pairs import InsertQDQPairs
from qcompiler.passes.legalize import Legalize
from qcompiler.passes.llm_int8 import LlmInt8
from qcompiler.passes.loosen_squeeze import LoosenSqueeze
from qcompiler.passes.matmul_nbits import MatmulNbits
from qcompiler.passes.mend_quantized import MendQuantized
from qcompiler.passes.name_dimensions import NameDimensions
from qcompiler.passes.name_everything import NameEverything
from qcompiler.passes.normalize_constants import NormalizeConstants
from qcompiler.passes.open_stored import OpenStored
from qcompiler.passes.quantize_outputs import QuantizeOutputs
from qcompiler.passes.raise_opset import RaiseOpset
from qcompiler.passes.release_quantizers import ReleaseQuantizers
from qcompiler.passes.smooth_quant import SmoothQuant
from qcompiler.passes.split_skip_norm import SplitSkipNorm
from qcompiler.passes.unroll_lstm import UnrollLSTM
from qcompiler.passes.unshare_weights import UnshareWeights
from qcompiler.passes.weight_only import WeightOnly

ALL: tuple[type[Pass], ...] = (
    InlineFunctions,
    NameEverything,
    NameDimensions,
    NormalizeConstants,
    RaiseOpset,
    FoldConstants,
    ConvertQoperator,
    MendQuantized,
    ReleaseQuantizers,
    FoldIfs,
    UnrollLSTM,
    LoosenSqueeze,
    EliminateIdentities,
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
    LlmInt8,
    OpenStored,
    InsertQDQ,
    InsertQDQPairs,
    DynamicQuant,
    QuantizeOutputs,
    WeightOnly,
    MatmulNbits,
    HighPrecision,
    FlattenRows,
    Legalize,
)

__all__ = [
    "ALL",
    "BakePrefix",
    "ConvertQoperator",
    "DynamicQuant",
    "EliminateDead",
    "EliminateIdentities",
    "EqualizeChannels",
    "FlattenRows",
    "FoldBatchNorm",
    "FoldChannelAffine",
    "FoldConstants",
    "FoldIfs",
    "FoldPad",
    "FuseHardSwish",
    "HighPrecision",
    "InlineFunctions",
    "InsertQDQ",
    "InsertQDQPairs",
    "Legalize",
    "LlmInt8",
    "LoosenSqueeze",
    "MatmulNbits",
    "MendQuantized",
    "NameDimensions",
    "NameEverything",
    "NormalizeConstants",
    "OpenStored",
    "QuantizeOutputs",
    "RaiseOpset",
    "ReleaseQuantizers",
    "SmoothQuant",
    "SplitSkipNorm",
    "UnrollLSTM",
    "UnshareWeights",
    "WeightOnly",
]
