"""Which operators changed from one opset to another, and how a node of the old one is said in the new one.

A row stands for every change of a signature (inputs, outputs, attributes, defaults) from opset 8 to `NEWEST`, and for
other changes of meaning; where a definition was only written again, or took more types, there is none. Rows of one
operator follow each other: Slice of opset 9 goes through that of 10. ONNX's own converter is not asked, because it
changes what some operators compute: linear Resize and Upsample, nearest ones that shrink, Hardmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qcompiler.passes.opsets import _early, _norms, _resize, _scan, _softmax
from qcompiler.passes.opsets._inputs import As, split_evenly, to_inputs
from qcompiler.passes.opsets._place import How, same

OLDEST = 7  # ONNX Runtime promises nothing for older ones: their rows, of what was in use then, are tried by hand
NEWEST = 23

_AXES = to_inputs(("axes", As.SOME))
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare".split()
)

_IN_PLACE = (
    "Abs Add BatchNormalization Ceil Clip Div Dropout Elu Exp Floor Gemm HardSigmoid InstanceNormalization LeakyRelu "
    "Log Max Mean Min Mul Neg PRelu Reciprocal Relu Sigmoid Sqrt Sub Sum Tanh"
)

# (operators, the opset that changed them, how)
_ROWS: tuple[tuple[str, int, How], ...] = (
    ("Concat", 4, _norms.told("axis", 1)),
    ("Pad", 2, _early.renamed_pads),
    ("Reshape", 5, to_inputs(("shape", As.INTS))),
    ("Cast", 6, _early.typed_by_number),
    (_IN_PLACE, 6, _early.without("consumed_inputs")),
    ("Selu", 6, _early.older_selu),
    ("BatchNormalization Dropout", 7, _early.tested),
    ("Add And Div Equal Greater Less Mul Or Pow Sub Xor", 7, _early.broadcast),
    ("Gemm", 7, _early.without("broadcast")),  # C meets the product as it does now
    ("GRU LSTM RNN", 7, _early.without("output_sequence")),
    ("GRU", 3, same),  # linear_before_reset
    ("PRelu", 7, _early.slope_of_channels),
    ("Upsample", 7, _early.scales_of_axes),
    ("ArgMax ArgMin", 12, same),  # select_last_index
    ("AveragePool", 10, same),  # ceil_mode
    ("AveragePool", 19, same),  # dilations
    ("BatchNormalization", 9, _norms.spatial),
    ("BatchNormalization", 14, _norms.inference_only),
    ("Cast CastLike", 19, same),  # saturate
    ("Clip", 11, to_inputs(("min", As.NUMBER), ("max", As.NUMBER))),
    ("Constant", 11, same),  # sparse_value
    ("Constant", 12, same),  # value_float and its like
    ("DFT", 20, to_inputs(("axis", As.INT), first=2, default={"axis": 1})),
    ("DepthToSpace", 11, same),  # mode
    ("DequantizeLinear QuantizeLinear", 13, same),  # axis; a scale for all values has none
    ("DequantizeLinear", 21, same),  # block_size
    ("DequantizeLinear", 23, same),  # output_dtype
    ("Dropout", 10, _norms.mask_as_bool),
    ("Dropout", 12, _norms.without_ratio),
    ("GRU LSTM RNN", 14, same),  # layout
    ("GatherND", 12, same),  # batch_dims
    ("Gemm", 11, same),  # C may be left out
    ("GridSample", 20, _norms.renamed_mode),
    ("GroupNormalization", 21, _norms.factors_for_channels),
    ("Hardmax LogSoftmax Softmax", 13, _softmax.over_all_from),
    ("LpPool", 18, same),  # ceil_mode, dilations
    ("MaxPool", 8, same),  # storage_order, Indices
    ("MaxPool", 10, same),  # ceil_mode, dilations
    ("OptionalHasElement", 18, same),  # the input may be left out
    ("Pad", 11, to_inputs(("pads", As.INTS), ("value", As.NUMBER))),
    ("Pad", 18, same),  # axes
    ("QuantizeLinear", 19, same),  # saturate
    ("QuantizeLinear", 21, same),  # block_size, output_dtype
    ("QuantizeLinear", 23, same),  # precision
    ("ReduceSum", 13, _AXES),
    (" ".join(_REDUCE), 18, _AXES),
    ("Reshape", 14, same),  # allowzero
    ("Resize", 11, _resize.asymmetric),
    ("Resize", 13, _resize.half_pixel_for_nearest),
    ("Resize", 18, same),  # antialias, axes, keep_aspect_ratio_policy
    ("RoiAlign", 16, _norms.told("coordinate_transformation_mode", "output_half_pixel")),
    ("Scan", 9, _scan.over_the_batch),
    ("Scatter", 11, _norms.renamed("ScatterElements")),
    ("ScatterElements ScatterND", 16, same),  # reduction
    ("Shape", 15, same),  # start, end
    ("Slice", 10, to_inputs(("starts", As.INTS), ("ends", As.INTS), ("axes", As.SOME))),
    ("Split", 13, to_inputs(("split", As.SOME))),
    ("Split", 18, split_evenly),
    ("Squeeze", 13, _AXES),
    ("TopK", 10, to_inputs(("k", As.INTS))),
    ("TopK", 11, same),  # largest, sorted
    ("Unsqueeze", 13, to_inputs(("axes", As.INTS))),
    ("Upsample", 9, to_inputs(("scales", As.FLOATS))),
    ("Upsample", 10, _resize.upsample),
)

TABLE: Mapping[tuple[str, int], How] = MappingProxyType(
    {(op, opset): how for ops, opset, how in _ROWS for op in ops.split()}
)
