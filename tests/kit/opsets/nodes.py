"""One node of every standard operator that any opset from 8 on defined again, in several forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.kit.opsets.bodies import drawn, with_bodies
from tests.kit.opsets.node import Held, Node, axis, real, whole

X = real(2, 3, 4)
IMAGE = real(2, 4, 8, 6)


def nodes() -> Iterator[Node]:
    """All of them."""
    yield from _elementwise()
    yield from _reductions()
    yield from _shapes()
    yield from _selections()
    yield from _windows()
    yield from _resizes()
    yield from _norms()
    yield from _products()
    yield from _recurrent()
    yield from _quantized()
    yield from _others()
    yield from drawn()
    yield from with_bodies()


def _elementwise() -> Iterator[Node]:
    for op in (
        "Abs Atan Asinh Ceil Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Mish Neg Reciprocal Relu Round "
        "Selu Celu Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu Identity IsNaN IsInf"
    ).split():
        yield Node(op, {}, (X,))
    for op in "Acos Asin Atanh".split():
        yield Node(op, {}, (np.tanh(X),))
    for op in "Log Sqrt Acosh".split():
        yield Node(op, {}, (np.abs(X) + 1,))
    for op in "Abs Neg Sign Identity".split():
        yield Node(op, {}, (whole(2, 3),))
    for op, attrs in (("Elu", {"alpha": 0.3}), ("LeakyRelu", {"alpha": 0.2}), ("Selu", {"alpha": 1.5, "gamma": 0.9})):
        yield Node(op, attrs, (X,))
    yield Node("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, (X,))
    yield Node("ThresholdedRelu", {"alpha": 0.1}, (X,))
    yield Node("IsInf", {"detect_negative": 0}, (np.where(np.abs(X) > 1, np.sign(X) * np.inf, X),))
    for op in "Add Sub Mul Div".split():
        yield Node(op, {}, (X, real(4, seed=1)))
        yield Node(op, {}, (whole(2, 3), whole(3, least=1)))
    for op in "Max Min Sum Mean".split():
        yield Node(op, {}, (X, real(2, 3, 4, seed=1), real(2, 3, 4, seed=2)))
        yield Node(op, {}, (X,))
        yield Node(op, {}, (X, real(3, 1, seed=1)), least=8)
    yield Node("Max", {}, (whole(2, 3), whole(3, seed=1)))
    yield Node("Min", {}, (whole(2, 3, dtype=np.int32), whole(3, seed=1, dtype=np.int32)))
    for op in "Equal Greater Less GreaterOrEqual LessOrEqual".split():
        yield Node(op, {}, (X, real(4)))
        yield Node(op, {}, (whole(2, 3), whole(3)))
    yield Node("Equal", {}, (whole(2, 3) > 0, whole(3) > 0))
    yield Node("Pow", {}, (np.abs(X), real(4, seed=1)))
    yield Node("Pow", {}, (X, Held(2.0, np.float32)))
    yield Node("Mod", {}, (whole(2, 3), whole(3, least=1)))
    yield Node("Mod", {"fmod": 1}, (X, real(4, seed=1)))
    yield Node("Where", {}, (X > 0, X, real(4)))
    yield Node("PRelu", {}, (X, real(3, 1, seed=1)))
    yield Node("PRelu", {}, (X, Held(real(4, seed=1))))
    yield Node("Clip", {}, (X,))
    yield Node("Clip", {"min": -0.5}, (X,))
    yield Node("Clip", {"max": 0.5}, (X,))
    yield Node("Clip", {"min": 0.0, "max": 6.0}, (X * 4,))
    yield Node("Clip", {}, (X, Held(np.float32(-0.5)), None))
    yield Node("Clip", {}, (X, None, Held(np.float32(0.5))))
    for to in (TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.DOUBLE):
        yield Node("Cast", {"to": to}, (X * 3,))
    yield Node("CastLike", {}, (X * 3, Held(np.zeros(1, np.int32))))
    yield Node("Dropout", {}, (X,))
    yield Node("Dropout", {"ratio": 0.3}, (X,))
    yield Node("Dropout", {"ratio": 0.3}, (X,), (True, True))
    yield Node("Dropout", {}, (X, Held(np.float32(0.2))))
    yield Node(
        "BitShift", {"direction": "LEFT"}, (whole(2, 3, least=0, dtype=np.uint32), whole(3, least=0, dtype=np.uint32))
    )


def _reductions() -> Iterator[Node]:
    positive = np.abs(real(2, 3, 4)) + 0.5
    ops = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
    for op in [f"Reduce{name}" for name in ops.split()]:
        x = positive if "Log" in op else X
        yield Node(op, {}, (x,))
        yield Node(op, {"axes": [1]}, (x,))
        yield Node(op, {"axes": [0, 2], "keepdims": 0}, (x,))
        yield Node(op, {"axes": [-1]}, (x,), most=17)
        yield Node(op, {"keepdims": 0}, (x,))
    for op in ("ReduceMax", "ReduceMin"):
        yield Node(op, {}, (X, axis(1)))
        yield Node(op, {"axes": [0]}, (whole(2, 3, dtype=np.int32),))
    yield Node("ReduceSum", {"keepdims": 0}, (whole(2, 3),))
    for op in ("ArgMax", "ArgMin"):
        yield Node(op, {}, (X,))
        yield Node(op, {"axis": 1, "keepdims": 0}, (whole(2, 9, most=0).astype(np.float32),))
        yield Node(op, {"axis": 2}, (whole(2, 3, 4, dtype=np.int32),))
    for op in "Softmax LogSoftmax Hardmax".split():
        yield Node(op, {}, (X,))
        yield Node(op, {}, (real(2, 5),))
        yield Node(op, {}, (real(2, 5, 1, 1),))
        for at in (0, 1, 2):
            yield Node(op, {"axis": at}, (X,))
        for at in (-1, -2):
            yield Node(op, {"axis": at}, (X,))
        yield Node(op, {"axis": 2}, (real(2, 3, 4, 5),))
        yield Node(op, {"axis": 3}, (real(2, 3, 4, 5),))
    yield Node("CumSum", {}, (X, Held(1, np.int64)))
    yield Node("CumSum", {"exclusive": 1, "reverse": 1}, (X, Held(2, np.int64)))


def _shapes() -> Iterator[Node]:
    yield Node("Concat", {"axis": 1}, (X, real(2, 2, 4)))
    yield Node("Constant", {"value": numpy_helper.from_array(X)}, ())
    yield Node("ConstantOfShape", {}, (Held([2, 3], np.int64),))
    yield Node("ConstantOfShape", {"value": numpy_helper.from_array(np.array([7], np.int64))}, (np.array([2, 3]),))
    yield Node("DepthToSpace", {"blocksize": 2}, (IMAGE,))
    yield Node("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, (IMAGE,))
    yield Node("SpaceToDepth", {"blocksize": 2}, (IMAGE,))
    yield Node("Expand", {}, (real(3, 1), np.array([2, 3, 4])))
    yield Node("EyeLike", {}, (real(3, 4),))
    yield Node("EyeLike", {"k": 1, "dtype": TensorProto.INT32}, (whole(3, 4),))
    for at in (0, 1, 2, 3):
        yield Node("Flatten", {"axis": at}, (X,))
    yield Node("Flatten", {}, (X,))
    yield Node("Flatten", {"axis": -1}, (X,), least=11)
    yield Node("Reshape", {}, (X, np.array([0, -1])))
    yield Node("Reshape", {}, (X, axis(4, 6)))
    yield Node("Shape", {}, (X,))
    yield Node("Size", {}, (X,))
    yield Node("Split", {"axis": 1}, (real(2, 6),), (True, True, True))
    yield Node("Split", {"axis": 1, "split": [2, 4]}, (real(2, 6),), (True, True))
    yield Node("Split", {}, (X,), (True, True))
    yield Node("Split", {"axis": 1}, (real(2, 6), axis(1, 5)), (True, True))
    yield Node("Squeeze", {}, (real(1, 3, 1),))
    yield Node("Squeeze", {"axes": [0]}, (real(1, 3, 1),))
    yield Node("Squeeze", {"axes": [-1]}, (real(1, 3, 1),))
    yield Node("Squeeze", {}, (real(1, 3, 1), axis(2)))
    yield Node("Unsqueeze", {"axes": [0, 2]}, (real(3, 4),))
    yield Node("Unsqueeze", {"axes": [-1]}, (real(3, 4),))
    yield Node("Unsqueeze", {}, (real(3, 4), axis(1)))
    yield Node("Tile", {}, (real(2, 3), np.array([2, 1])))
    yield Node("Transpose", {}, (X,))
    yield Node("Transpose", {"perm": [1, 0, 2]}, (X,))
    for mode in ("constant", "reflect", "edge"):
        yield Node("Pad", {"mode": mode, "pads": [0, 1, 1, 0, 2, 1]}, (real(2, 5, 4),))
        yield Node("Pad", {"mode": mode}, (real(2, 5, 4), axis(0, 1, 1, 0, 2, 1)))
    yield Node("Pad", {"pads": [0, 0, 1, 0, 0, 1], "value": 1.5}, (X,))
    yield Node("Pad", {"pads": [0, 0, -1, 0, 0, 2]}, (X.astype(np.float64),))
    yield Node("Pad", {}, (X, axis(0, 0, 1, 0, 0, 1), Held(np.float32(2))))


def _selections() -> Iterator[Node]:
    yield Node("Gather", {}, (X, whole(2, 2, least=0, most=2)))
    yield Node("Gather", {"axis": 2}, (X, whole(3, least=0, most=4, dtype=np.int32)))
    yield Node("Gather", {"axis": 2}, (X, axis(-1, 0)), most=12)
    yield Node("GatherElements", {"axis": 1}, (X, whole(2, 2, 4, least=0, most=3)))
    yield Node("GatherND", {}, (X, np.array([[0, 1], [1, 2]])))
    yield Node("Scatter", {}, (real(3, 3), np.array([[1, 0, 2]]), real(1, 3, seed=1)))
    yield Node("Scatter", {"axis": 1}, (real(2, 5), np.array([[1, 3], [0, 4]]), real(2, 2, seed=1)))
    yield Node("ScatterElements", {"axis": 1}, (real(2, 5), np.array([[1, 3], [0, -1]]), real(2, 2, seed=1)))
    yield Node("ScatterND", {}, (X, np.array([[0], [1]]), real(2, 3, 4, seed=1)))
    for attrs in ({"starts": [1], "ends": [3]}, {"starts": [0, -3], "ends": [1, -1], "axes": [0, 2]}):
        yield Node("Slice", attrs, (real(4, 3, 5),))
    yield Node("Slice", {"starts": [1, 1], "ends": [1000, 2], "axes": [1, 0]}, (X,))
    yield Node("Slice", {}, (X, axis(1), axis(3), axis(2)))
    yield Node("Slice", {}, (X, axis(3), axis(-5), axis(-1), axis(-2)))
    yield Node("TopK", {"k": 2}, (real(3, 6),), (True, True))
    yield Node("TopK", {"k": 2, "axis": 0}, (real(3, 6),), (True, True))
    yield Node("TopK", {}, (real(3, 6), Held([3], np.int64)), (True, True))
    yield Node("TopK", {"largest": 0}, (whole(3, 6), np.array([3])), (True, True))
    yield Node("Compress", {"axis": 1}, (X, np.array([True, False, True])))
    yield Node("Compress", {}, (X, Held([True, False, True])))
    yield Node("NonZero", {}, (X * (X > 0),))
    yield Node("OneHot", {}, (whole(3, least=0), Held(5, np.int64), Held([0, 1], np.float32)))
    yield Node("OneHot", {"axis": 0}, (whole(3, least=0), Held([5], np.int64), Held([2, 3], np.int64)))
    yield Node("Unique", {}, (whole(8).astype(np.float32),), (True, True, True, True))
    yield Node("ReverseSequence", {}, (real(4, 2, 3), Held([2, 4], np.int64)))
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3]]], np.float32)
    limits = (Held([3], np.int64), Held([0.5], np.float32), Held([0.1], np.float32))
    yield Node("NonMaxSuppression", {}, (boxes, np.array([[[0.9, 0.8, 0.7]]], np.float32), *limits))


def _windows() -> Iterator[Node]:
    kernel, square = Held(real(4, 4, 3, 3, seed=1)), {"kernel_shape": [3, 3]}
    forms: list[dict[str, Any]] = [
        {},
        {"pads": [1, 0, 1, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    ]
    for form in forms:
        yield Node("Conv", {**square, **form}, (IMAGE, kernel))
        yield Node("ConvTranspose", {**square, **form}, (IMAGE, kernel))
        for op in ("MaxPool", "AveragePool", "LpPool"):
            yield Node(op, {**square, **form}, (IMAGE,))
    yield Node("Conv", {"dilations": [2, 1], "group": 2}, (IMAGE, Held(real(6, 2, 3, 3)), Held(real(6))))
    yield Node("ConvTranspose", {"output_padding": [1, 0], "strides": [2, 2], "dilations": [2, 2]}, (IMAGE, kernel))
    yield Node("ConvTranspose", {"output_shape": [17, 13], "strides": [2, 2]}, (IMAGE, kernel))
    yield Node("MaxPool", {**square, "strides": [2, 2]}, (IMAGE,), (True, True))
    yield Node("MaxPool", {**square, "strides": [2, 2], "storage_order": 1}, (IMAGE,), (True, True))
    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield Node(op, {**square, "ceil_mode": 1, "strides": [2, 2], "pads": [1, 1, 1, 1]}, (IMAGE,))
        yield Node(op, {"kernel_shape": [3]}, (X,))
    yield Node("AveragePool", {**square, "count_include_pad": 1, "pads": [1, 1, 0, 0]}, (IMAGE,))
    both = {**square, "count_include_pad": 1, "ceil_mode": 1, "strides": [3, 3], "pads": [1, 1, 1, 1]}
    yield Node("AveragePool", both, (IMAGE,))
    yield Node("LpPool", {**square, "p": 1}, (IMAGE,))
    for op in "GlobalAveragePool GlobalMaxPool GlobalLpPool LRN".split():
        yield Node(op, {"size": 3} if op == "LRN" else {}, (IMAGE,))
    indices = np.array([[[[0, 3], [12, 15]]]])
    yield Node("MaxUnpool", {"kernel_shape": [2, 2], "strides": [2, 2]}, (real(1, 1, 2, 2), indices))
    rois = np.array([[0, 0, 0, 4, 4], [1, 1, 1, 5, 7]], np.float32)
    yield Node("MaxRoiPool", {"pooled_shape": [2, 2]}, (IMAGE, rois))
    for attrs in (
        {},
        {"sampling_ratio": 2, "output_height": 3, "output_width": 2},
        {"mode": "max", "spatial_scale": 0.5},
    ):
        yield Node("RoiAlign", attrs, (IMAGE, rois[:, 1:] + 0.3, np.array([0, 1])))
    offset, shifted = real(1, 18, 3, 3, scale=0.3), real(1, 4, 5, 5)
    yield Node("DeformConv", {"kernel_shape": [3, 3]}, (shifted, kernel, offset))
    grid = np.tanh(real(2, 3, 5, 2))
    for mode in ("bilinear", "bicubic", "nearest"):
        yield Node("GridSample", {"mode": mode}, (IMAGE, grid), most=19)
        yield Node("GridSample", {"mode": mode, "padding_mode": "border", "align_corners": 1}, (IMAGE, grid), most=19)
    yield Node("GridSample", {}, (IMAGE, grid))


def _resizes() -> Iterator[Node]:
    image = (1.0, 1.0)
    shapes: list[tuple[list[int], list[list[float]]]] = [
        ([1, 2, 4, 5], [[*image, *s] for s in ([2.0, 2.0], [1.5, 2.3], [0.6, 0.4], [2.5, 0.7], [1.0, 3.0])]),
        ([4, 5], [[2.0, 3.0], [0.5, 0.8]]),
        ([1, 2, 3, 4, 5], [[*image, 2.0, 1.5, 2.0]]),
    ]
    for shape, all_scales in shapes:
        x = real(*shape)
        for scales in all_scales:
            grows = min(scales) >= 1
            for mode in ("nearest", "linear"):
                yield Node("Resize", {"mode": mode}, (x, Held(scales, np.float32)), most=10)
                yield Node("Resize", {"mode": mode}, (x, np.array(scales, np.float32)), most=10)
                if grows:
                    yield Node("Upsample", {"mode": mode, "scales": scales}, (x,))
                    yield Node("Upsample", {"mode": mode}, (x, Held(scales, np.float32)))
                    yield Node("Upsample", {"mode": mode}, (x, np.array(scales, np.float32)))
            if scales not in shapes[0][1][1::2]:
                continue
            roi = Held(np.empty(0, np.float32))
            for rule in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_half_pixel_for_nn"):
                for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
                    attrs = {"coordinate_transformation_mode": rule, "nearest_mode": rounding}
                    gone = 12 if rule == "tf_half_pixel_for_nn" else 99
                    yield Node("Resize", attrs, (x, roi, Held(scales, np.float32)), most=gone)
                if rule != "tf_half_pixel_for_nn":
                    attrs = {"coordinate_transformation_mode": rule, "mode": "linear"}
                    yield Node("Resize", attrs, (x, roi, Held(scales, np.float32)))
    x, to = real(1, 2, 4, 5), axis(1, 2, 7, 9)
    sharper: dict[str, Any] = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}
    for sized in ({}, {"mode": "linear"}, {"mode": "cubic"}, sharper):
        yield Node("Resize", sized, (x, Held(np.empty(0, np.float32)), Held(np.empty(0, np.float32)), to))
    cropped: dict[str, Any] = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 0.5,
        "mode": "linear",
    }
    yield Node(
        "Resize", cropped, (x, Held([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.2], np.float32), Held([1, 1, 2, 2], np.float32))
    )


def _norms() -> Iterator[Node]:
    four = [Held(real(4, seed=seed)) for seed in (1, 2, 3)] + [Held(np.abs(real(4, seed=4)) + 0.5)]
    yield Node("BatchNormalization", {}, (IMAGE, *four))
    yield Node("BatchNormalization", {"epsilon": 1e-3, "momentum": 0.5}, (IMAGE, *four))
    one = [Held(real(3, 4, seed=seed)) for seed in (1, 2, 3)] + [Held(np.abs(real(3, 4, seed=4)) + 0.5)]
    yield Node("BatchNormalization", {"spatial": 0}, (X, *one))
    yield Node("InstanceNormalization", {}, (IMAGE, four[0], four[1]))
    yield Node("GroupNormalization", {"num_groups": 2}, (IMAGE, Held(real(2)), Held(real(2, seed=1))), most=20)
    yield Node("GroupNormalization", {"num_groups": 2}, (IMAGE, real(2), real(2, seed=1)), most=20)
    yield Node("LpNormalization", {}, (X,))
    yield Node("LpNormalization", {"p": 1, "axis": 1}, (X,))
    yield Node("MeanVarianceNormalization", {}, (IMAGE,))
    yield Node("MeanVarianceNormalization", {"axes": [1, 2]}, (X,))
    yield Node("LayerNormalization", {}, (X, Held(real(4))))


def _products() -> Iterator[Node]:
    yield Node("MatMul", {}, (X, Held(real(4, 5))))
    yield Node("MatMul", {}, (whole(2, 3, dtype=np.int32), whole(3, 2, dtype=np.int32)))
    yield Node("Gemm", {}, (real(3, 4), Held(real(4, 5)), Held(real(5))))
    yield Node("Gemm", {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, (real(4, 3), real(5, 4), real(3, 1)))
    yield Node("Gemm", {}, (real(3, 4), real(4, 5)))
    yield Node("Einsum", {"equation": "bij,jk->bik"}, (X, real(4, 5)))
    yield Node("Det", {}, (real(2, 3, 3),))


def _recurrent() -> Iterator[Node]:
    x = real(5, 2, 3)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            weights = (
                Held(real(ways, gates * 8, 3, scale=0.3)),
                Held(real(ways, gates * 8, 8, seed=1, scale=0.3)),
                Held(real(ways, 2 * gates * 8, seed=2, scale=0.3)),
            )
            attrs = {"hidden_size": 8, "direction": direction}
            yield Node(op, attrs, (x, *weights), (True, True))
            yield Node(op, attrs, (x, *weights, Held([5, 3], np.int32), real(ways, 2, 8)), (False, True))
    big = (Held(real(1, 256, 3, scale=0.3)), Held(real(1, 256, 64, scale=0.1)), Held(real(1, 512, scale=0.1)))
    yield Node("LSTM", {"hidden_size": 64, "clip": 1.0}, (x, *big), (True, False, True))
    yield Node("GRU", {"hidden_size": 8, "linear_before_reset": 1}, (x, Held(real(1, 24, 3)), Held(real(1, 24, 8))))


def _quantized() -> Iterator[Node]:
    scale, zero = Held(np.float32(0.03)), Held(np.uint8(120))
    codes = whole(2, 3, least=0, most=255, dtype=np.uint8)
    yield Node("QuantizeLinear", {}, (X, scale, zero))
    yield Node("QuantizeLinear", {}, (X, scale))
    yield Node("QuantizeLinear", {"axis": 2}, (X, Held(np.abs(real(4)) + 0.1), Held(np.zeros(4, np.int8))))
    yield Node("DequantizeLinear", {}, (codes, scale, zero))
    yield Node("DequantizeLinear", {}, (codes.view(np.int8), scale))
    yield Node("DequantizeLinear", {}, (whole(2, 3, dtype=np.int32), scale))
    yield Node("DequantizeLinear", {"axis": 0}, (codes, Held(np.abs(real(2)) + 0.1), Held(np.ones(2, np.uint8))))
    small = (Held(np.float32(0.02)), Held(np.uint8(10)))
    yield Node("QLinearMatMul", {}, (codes, scale, zero, codes.T.copy(), *small, Held(np.float32(0.5)), zero))


def _others() -> Iterator[Node]:
    yield Node("DFT", {"axis": 1}, (real(2, 8, 1),), most=19)
    yield Node("DFT", {}, (real(2, 8, 3, 1),), most=19)
    yield Node("DFT", {"axis": 2, "onesided": 1}, (real(2, 3, 8, 1), Held(8, np.int64)), most=19)
    yield Node("DFT", {"inverse": 1}, (real(2, 8, 2),), most=19)
    scores, labels = real(4, 3), whole(4, least=0, most=3)
    log = scores - 3.0
    yield Node("NegativeLogLikelihoodLoss", {}, (log, labels))
    yield Node("NegativeLogLikelihoodLoss", {"reduction": "none"}, (log, labels, Held(np.abs(real(3)))))
    yield Node("SoftmaxCrossEntropyLoss", {}, (scores, labels))
    yield Node("SoftmaxCrossEntropyLoss", {"reduction": "sum"}, (scores, labels))
