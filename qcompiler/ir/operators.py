"""Kinds of ONNX operators: the names that more than one rule goes by. Tables differ where what they say differs.

Names are of the standard domain unless a table says otherwise. A list that only one rule needs stands with that rule.
"""

from __future__ import annotations

# What multiplies and adds

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # with a matrix that may be constant
PRODUCTS = ("MatMul", "Gemm")  # those whose channels are the last axis
MULTIPLYING = frozenset({*LINEAR, "Einsum"})  # also where both operands are computed
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
QUANTIZED_OPS = (
    "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulNBits", "QGemm",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention",
)  # fmt: skip

# What only moves, picks or repeats elements

REARRANGES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")  # all elements, each once
VIEWS = (*REARRANGES, "Cast")  # the same elements of perhaps another type
PICKS = frozenset({*REARRANGES, "Expand", "Slice", "Split", "Gather"})  # of one tensor
# Q(f(x)) = f(Q(x)) for one scale per tensor. Resize is not among them, not even to the nearest value: TensorRT-RTX
# then runs the convolution behind it in float.
COMMUTING = (*REARRANGES, "Concat", "MaxPool", "Slice", "Split", "Gather")
CARRIES = (*COMMUTING, "Expand", "Where", "DepthToSpace", "SpaceToDepth")  # integers unchanged, from Q to DQ
# What makes no new value, for the typing in half
MOVES = frozenset(
    {
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather",
        "GatherElements", "GatherND", "Concat", "Split", "Expand", "Tile", "Pad", "DepthToSpace",
        "SpaceToDepth", "MaxPool", "Compress", "ScatterND", "ScatterElements", "ReverseSequence",
        "ReduceMax", "ReduceMin", "Trilu", "Resize", "Upsample",
    }
)  # fmt: skip

# What computes element by element

POINTWISE = frozenset(
    {
        "Abs", "Acos", "Add", "Asin", "Atan", "Ceil", "Clip", "Cos", "Cosh", "Div", "Elu", "Erf", "Exp",
        "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mod",
        "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
# What lets channels be put in another order
ELEMENTWISE = frozenset(
    "Abs Add Cast Ceil Clip Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Mean Min Mish "
    "Mul Neg Pow Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Sum Swish Tanh Where".split()
)
# What may stand between a convolution and the sum of a shortcut
ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "PRelu", "Mish", "Gelu", "Swish",
    "Mul",
)  # fmt: skip
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Neg", "Abs", "Dropout")  # f(x/s) = f(x)/s for positive s

# What joins elements

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
CHANNEL_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")

# How the typing in half tells them apart

ACCUMULATES = frozenset(
    {
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceProd", "CumSum", "InstanceNormalization", "LpNormalization",
        "MeanVarianceNormalization", "LRN", "GlobalLpPool", "LpPool", "Det", "CumProd", "DFT", "STFT",
        "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",
    }
)  # fmt: skip
AMPLIFIES = frozenset({"Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Sinh", "Cosh", "Tan", "Atanh", "Mod"})
COORDINATES = frozenset({"GridSample", "RoiAlign", "AffineGrid", "NonMaxSuppression", "MaxRoiPool"})
SATURATES = frozenset({"Clip", "Max", "Min"})
COMPARES = frozenset(
    {
        "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "IsNaN", "IsInf", "NonZero", "ArgMax",
        "ArgMin", "TopK", "Unique",
    }
)  # fmt: skip

# Elsewhere

TAPPED = (*LINEAR, "LSTM", "GRU", "RNN", "BatchNormalization")  # whose outputs the drift is measured at
# What makes no sense with NaN or infinity among its constants
FINITE = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "DequantizeLinear",
        "Einsum",
        "EmbedLayerNormalization",
        "FusedMatMul",
        "GRU",
        "Gather",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "PRelu",
        "QuantizeLinear",
        "RMSNormalization",
        "RNN",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    }
)
