"""The small models of the replay: a CNN, an encoder, one that comes quantized, and one with odd operators.

They are generated with fixed seeds from onnx.helper and numpy alone, so that any commit gets the same bytes. The
decoders are in `language`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Feeds = dict[str, Array]
Spec = tuple[Any, ...]  # (op, "inputs by blanks", "outputs by blanks", {attributes}); `_` is an omitted input
OUTLIERS = np.array([40, 60, 80], np.float32)  # factors of the first channels behind a norm


@dataclass(frozen=True)
class Subject:
    """A model and data for it.

    Attributes:
        proto: the model, or the text of a Python file whose function `network` returns a torch.nn.Module.
        feeds: calibration samples of batch 1.
        external: whether its weights are saved in a file beside it.
    """

    proto: onnx.ModelProto | str
    feeds: Sequence[Feeds]
    external: bool = False


def cnn() -> Subject:
    """Convolutions with norms, a residual block, a depthwise one, pools, hard swish and a Gemm; x [n, 3, 16, 16]."""
    rng = np.random.default_rng(41)
    weights: dict[str, Any] = {}
    body: list[Spec] = []

    def convolution(x: str, name: str, out: int, into: int, size: int = 3, group: int = 1) -> str:
        shape = (out, into // group, size, size)
        weights[f"{name}.w"] = _normal(rng, shape, float(np.sqrt(2 / np.prod(shape[1:]))))
        weights[f"{name}.w"] *= np.exp(rng.normal(0, 0.7, (out, 1, 1, 1))).astype(np.float32)
        pads = [size // 2] * 4
        body.append(("Conv", f"{x} {name}.w", f"{name}.c", {"pads": pads, "kernel_shape": [size] * 2, "group": group}))
        weights[f"{name}.s"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
        weights[f"{name}.t"] = _normal(rng, out, 0.2)
        weights[f"{name}.m"] = _normal(rng, out, 0.2)
        weights[f"{name}.v"] = rng.uniform(0.5, 2, out).astype(np.float32)
        body.append(("BatchNormalization", " ".join(f"{name}.{one}" for one in "cstmv"), f"{name}.n"))
        return f"{name}.n"

    body.append(("Relu", convolution("x", "stem", 16, 3), "stem.r"))
    body.append(("MaxPool", "stem.r", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}))
    body.append(("Relu", convolution("p", "one", 16, 16), "one.r"))
    body.append(("Add", f"{convolution('one.r', 'two', 16, 16)} p", "sum"))
    body.append(("Relu", "sum", "sum.r"))
    body.append(("Clip", f"{convolution('sum.r', 'depth', 16, 16, group=16)} zero six", "depth.r"))
    point = convolution("depth.r", "point", 32, 16, size=1)
    body += [("Add", f"{point} three", "h.a"), ("Clip", "h.a zero six", "h.c"), ("Div", "h.c six", "h.d")]
    body += [("Mul", f"{point} h.d", "h"), ("GlobalAveragePool", "h", "g"), ("Flatten", "g", "f")]
    body += [("Gemm", "f head.w head.b", "y", {"transB": 1})]
    weights |= {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}
    weights |= {"head.w": _normal(rng, (16, 32), 0.3), "head.b": _normal(rng, 16, 0.3)}
    feeds = [{"x": _normal(rng, (1, 3, 16, 16))} for _ in range(12)]
    return Subject(model(body, {"x": (np.float32, ("n", 3, 16, 16))}, ["y"], weights, opset=17), feeds)


WIDTH, HEADS, INNER, WORDS = 64, 2, 128, 96


def encoder() -> Subject:
    """A pre-norm block and a post-norm one with outlier channels and a token that spikes; ids and mask [n, s]."""
    rng = np.random.default_rng(43)
    size = WIDTH // HEADS
    weights: dict[str, Any] = {"embedding": _normal(rng, (WORDS, WIDTH)), "places": _normal(rng, (32, WIDTH), 0.3)}
    weights |= {"two": np.float32(2), "root2": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    weights |= {"tiny": np.float32(1e-5), "root": np.float32(np.sqrt(size)), "far": np.float32(-1e4)}
    weights |= {"split": np.array([0, 0, HEADS, size]), "join": np.array([0, 0, WIDTH])}
    weights |= {"a0": np.array([0]), "a1": np.array([1]), "a2": np.array([2]), "inner": np.array([1, 2])}
    body: list[Spec] = [
        ("Gather", "embedding ids", "e"),
        ("Shape", "ids", "shape"),
        ("Slice", "shape a1 a2 a0", "length"),
        ("Slice", "places a0 length a0", "at"),
        ("Add", "e at", "x0"),
        ("Cast", "mask", "m.f", {"to": TensorProto.FLOAT}),
        ("Sub", "one m.f", "m.n"),
        ("Mul", "m.n far", "m.b"),
        ("Unsqueeze", "m.b inner", "m"),
    ]

    def linear(x: str, name: str, into: int, out: int) -> str:
        weights[f"{name}.w"], weights[f"{name}.b"] = _normal(rng, (into, out), into**-0.5), _normal(rng, out, 0.1)
        body.extend([("MatMul", f"{x} {name}.w", f"{name}.p"), ("Add", f"{name}.p {name}.b", name)])
        return name

    def norm(x: str, name: str, whole: bool) -> str:
        weights[f"{name}.g"] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        weights[f"{name}.b"] = _normal(rng, WIDTH, 0.1)
        if whole:
            body.append(("LayerNormalization", f"{x} {name}.g {name}.b", name, {"axis": -1}))
            return name
        mean = {"axes": [-1], "keepdims": 1}
        body.extend(
            [
                ("ReduceMean", x, f"{name}.m", mean),
                ("Sub", f"{x} {name}.m", f"{name}.d"),
                ("Pow", f"{name}.d two", f"{name}.p"),
                ("ReduceMean", f"{name}.p", f"{name}.v", mean),
                ("Add", f"{name}.v tiny", f"{name}.a"),
                ("Sqrt", f"{name}.a", f"{name}.r"),
                ("Div", f"{name}.d {name}.r", f"{name}.n"),
                ("Mul", f"{name}.n {name}.g", f"{name}.s"),
                ("Add", f"{name}.s {name}.b", name),
            ]
        )
        return name

    def attention(x: str, name: str) -> str:
        for one, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            part = linear(x, f"{name}.{one}", WIDTH, WIDTH)
            body.append(("Reshape", f"{part} split", f"{part}.r"))
            body.append(("Transpose", f"{part}.r", f"{part}.t", {"perm": order}))
        body.extend(
            [
                ("MatMul", f"{name}.q.t {name}.k.t", f"{name}.s"),
                ("Div", f"{name}.s root", f"{name}.sd"),
                ("Add", f"{name}.sd m", f"{name}.sm"),
                ("Softmax", f"{name}.sm", f"{name}.a", {"axis": -1}),
                ("MatMul", f"{name}.a {name}.v.t", f"{name}.av"),
                ("Transpose", f"{name}.av", f"{name}.at", {"perm": [0, 2, 1, 3]}),
                ("Reshape", f"{name}.at join", f"{name}.j"),
            ]
        )
        return linear(f"{name}.j", f"{name}.o", WIDTH, WIDTH)

    def feed_forward(x: str, name: str) -> str:
        up = linear(x, f"{name}.up", WIDTH, INNER)
        body.extend(
            [
                ("Div", f"{up} root2", f"{name}.r"),
                ("Erf", f"{name}.r", f"{name}.e"),
                ("Add", f"{name}.e one", f"{name}.1"),
                ("Mul", f"{up} {name}.1", f"{name}.h"),
                ("Mul", f"{name}.h half", f"{name}.g"),
            ]
        )
        return linear(f"{name}.g", f"{name}.down", INNER, WIDTH)

    body.append(("Add", f"x0 {attention(norm('x0', 'n1', True), 'l0')}", "x1"))
    body.append(("Add", f"x1 {feed_forward(norm('x1', 'n2', True), 'f0')}", "x2"))
    body.append(("Add", f"x2 {attention('x2', 'l1')}", "x3"))
    third = norm("x3", "n3", False)
    body.append(("Add", f"{third} {feed_forward(third, 'f1')}", "x4"))
    linear(norm("x4", "n4", False), "y", WIDTH, WIDTH)
    for name, readers in {"n1": ("l0.q", "l0.k", "l0.v"), "n2": ("f0.up",), "n4": ("y",)}.items():
        _scale(weights, name, readers)
    weights["f0.up.w"][-1, -4:] = 8  # units that answer token 0, the first of every text, whose last channel is large
    weights["embedding"][:, -1] *= 0.1
    weights["embedding"][0, -1] = 30
    feeds = [_text(rng, 8 + 2 * (at % 3)) for at in range(8)]
    inputs = {"ids": (np.int64, ("n", "s")), "mask": (np.int64, ("n", "s"))}
    return Subject(model(body, inputs, ["y"], weights, opset=17), feeds)


def _scale(weights: dict[str, Any], norm: str, readers: Sequence[str]) -> None:
    """Makes the first channels behind a norm larger and what reads them smaller: the function stays the same."""
    for part in "gb":
        weights[f"{norm}.{part}"][: len(OUTLIERS)] *= OUTLIERS
    for reader in readers:
        weights[f"{reader}.w"][: len(OUTLIERS)] /= OUTLIERS[:, None]


def _text(rng: np.random.Generator, length: int) -> Feeds:
    """Token 0, then others; the last one is padding."""
    ids = rng.integers(1, WORDS, (1, length))
    ids[0, 0] = 0
    mask = np.ones((1, length), np.int64)
    mask[0, -1] = 0
    return {"ids": ids, "mask": mask}


def came() -> Subject:
    """Products whose weights are stored in INT8 behind Q/DQ pairs, one asymmetric, and one in float; x [n, 8, 32]."""
    rng = np.random.default_rng(47)
    weights: dict[str, Any] = {"s": np.float32(0.03), "z": np.int8(0), "s2": np.float32(0.05), "z2": np.uint8(120)}
    weights["zc"] = np.zeros(32, np.int8)
    for name in ("one", "two"):
        weights[f"{name}.w"] = rng.integers(-127, 128, (32, 32)).astype(np.int8)
        weights[f"{name}.s"] = rng.uniform(1e-3, 3e-3, 32).astype(np.float32)
    weights["three.w"], weights["three.b"] = _normal(rng, (32, 32), 0.2), _normal(rng, 32, 0.1)
    body: list[Spec] = []
    for name, x, pair in (("one", "x", "s z"), ("two", "one.r", "s2 z2")):
        body += [
            ("QuantizeLinear", f"{x} {pair}", f"{name}.q"),
            ("DequantizeLinear", f"{name}.q {pair}", f"{name}.d"),
            ("DequantizeLinear", f"{name}.w {name}.s zc", f"{name}.f", {"axis": 1}),
            ("MatMul", f"{name}.d {name}.f", f"{name}.y"),
            ("Relu", f"{name}.y", f"{name}.r"),
        ]
    body += [("MatMul", "two.r three.w", "three"), ("Add", "three three.b", "y")]
    feeds = [{"x": _normal(rng, (1, 8, 32))} for _ in range(8)]
    return Subject(model(body, {"x": (np.float32, ("n", 8, 32))}, ["y"], weights, opset=19), feeds)


def operators() -> Subject:
    """A product in the QOperator format and one with a scale per run; x [n, 8, 32]."""
    rng = np.random.default_rng(53)
    drawn = rng.integers(-127, 128, (2, 32, 32)).astype(np.int8)
    weights = {"s": np.float32(0.05), "z": np.uint8(128), "zw": np.int8(0), "w": drawn[0], "v": drawn[1]}
    weights |= {"sw": np.float32(2e-3), "sy": np.float32(0.06)}
    body: list[Spec] = [
        ("QuantizeLinear", "x s z", "q"),
        ("QLinearMatMul", "q s z w sw zw sy z", "p"),
        ("DequantizeLinear", "p sy z", "h"),
        ("DynamicQuantizeLinear", "h", "dq ds dz"),
        ("MatMulInteger", "dq v dz zw", "i"),
        ("Cast", "i", "if", {"to": TensorProto.FLOAT}),
        ("Mul", "ds sw", "both"),
        ("Mul", "if both", "y"),
    ]
    feeds = [{"x": _normal(rng, (1, 8, 32), 2)} for _ in range(8)]
    return Subject(model(body, {"x": (np.float32, ("n", 8, 32))}, ["y"], weights, opset=17), feeds)


def odd() -> Subject:
    """An LSTM, an If whose condition is computed, and products around them; x [1, 6, 32]."""
    rng = np.random.default_rng(59)
    weights: dict[str, Any] = {"in.w": _normal(rng, (32, 32), 0.2), "out.w": _normal(rng, (32, 32), 0.2)}
    weights |= {"l.w": _normal(rng, (1, 64, 32), 0.2), "l.r": _normal(rng, (1, 64, 16), 0.2)}
    weights |= {"l.b": _normal(rng, (1, 128), 0.1), "up.w": _normal(rng, (16, 32), 0.2), "no": np.float32(0)}
    weights |= {"a1": np.array([1]), "all": np.array([0, 1, 2])}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["u", *more], [f"{name}.y"], f"{name}.{op}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, (1, 6, 32))],
        )
        for name, op, more in (("then", "MatMul", ["out.w"]), ("else", "Tanh", []))
    }
    body: list[Spec] = [
        ("MatMul", "x in.w", "h"),
        ("Transpose", "h", "t", {"perm": [1, 0, 2]}),
        ("LSTM", "t l.w l.r l.b", "l.y", {"hidden_size": 16}),
        ("Squeeze", "l.y a1", "l.s"),
        ("Transpose", "l.s", "l.t", {"perm": [1, 0, 2]}),
        ("MatMul", "l.t up.w", "u"),
        ("ReduceMean", "u", "mean", {"axes": [0, 1, 2], "keepdims": 0}),
        ("Greater", "mean no", "which"),
        ("If", "which", "i", branches),
        ("Add", "i h", "y"),
    ]
    del weights["all"]
    feeds = [{"x": _normal(rng, (1, 6, 32))} for _ in range(8)]
    return Subject(model(body, {"x": (np.float32, (1, 6, 32))}, ["y"], weights, opset=17), feeds)


def model(
    body: Sequence[Spec],
    inputs: Mapping[str, tuple[Any, tuple[int | str, ...]]],
    outputs: Sequence[str],
    weights: Mapping[str, Any],
    opset: int,
) -> onnx.ModelProto:
    """A checked model; nodes are named like their first output, in capitals, and outputs are typed by inference."""
    nodes = []
    for op, reads, writes, *attributes in body:
        names = ["" if name == "_" else name for name in reads.split()]
        made = writes.split()
        nodes.append(helper.make_node(op, names, made, made[0].upper(), **(attributes[0] if attributes else {})))
    graph = helper.make_graph(
        nodes,
        "main",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(np.dtype(t)), s)
            for k, (t, s) in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(proto)
    for value, found in zip(graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)
    proto.graph.ClearField("output")
    proto.graph.output.extend(inferred.graph.output)
    onnx.checker.check_model(proto)
    return proto


def _normal(rng: np.random.Generator, shape: int | tuple[int, ...], scale: float = 1.0) -> NDArray[np.float32]:
    drawn: NDArray[np.float64] = rng.standard_normal(shape) * scale
    return drawn.astype(np.float32)
