"""Kinds of ONNX operators, as the typing in half tells them apart: names of the standard domain."""

from __future__ import annotations

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
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
SATURATES = frozenset({"Clip", "Max", "Min"})
MOVES = frozenset(
    {
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather",
        "GatherElements", "GatherND", "Concat", "Split", "Expand", "Tile", "Pad", "DepthToSpace",
        "SpaceToDepth", "MaxPool", "Compress", "ScatterND", "ScatterElements", "ReverseSequence",
        "ReduceMax", "ReduceMin", "Trilu", "Resize", "Upsample",
    }
)  # fmt: skip
COMPARES = frozenset(
    {
        "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "IsNaN", "IsInf", "NonZero", "ArgMax",
        "ArgMin", "TopK", "Unique",
    }
)  # fmt: skip
POINTWISE = frozenset(
    {
        "Abs", "Acos", "Add", "Asin", "Atan", "Ceil", "Clip", "Cos", "Cosh", "Div", "Elu", "Erf", "Exp",
        "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mod",
        "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
