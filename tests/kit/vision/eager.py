"""A net that is built node by node and computed at once on pictures, so that its weights follow what they read.

    noise gain of a layer = |W|² · E[x²] / Var(W·x)

is what the layer does to noise that is equal in all channels, such as that of rounding, over what it does to its
signal. Random weights do not know the few directions in which pictures differ: noise grows by 1 to 5 dB a layer, in
deep nets without end, and FP16 alone is heard at the outputs. Small nets that were trained for minutes on pictures like
`scenes` had +2 to -4 dB in front, -5 to -8 in necks and -9 to -13 in heads. Here a weight is fitted by ridge regression
to bounded functions of what the layer reads, with the penalty that gives the noise gain asked for; scales and biases
are those of a folded BatchNormalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tests.kit.rewrite import Spec, graph_proto, model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

INPUT = "image"
OPSET = 17
POSITIONS = 1500  # that a layer's patches are taken from
UNEVEN, SHIFT = 0.25, 0.3  # spread of a BatchNormalization's scales (of their logarithms) and of its shifts
HALVINGS = 12  # of the penalty's logarithm


class Net:
    """Nodes, weights and what they compute.

    Args:
        seed: of the weights.
        seen: pictures to compute on, float32 [count, 3, height, width].
    """

    def __init__(self, seed: int, seen: Array) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Spec] = []
        self.weights: dict[str, Any] = {}
        self.values: dict[str, NDArray[Any]] = {INPUT: seen}

    def add(self, op: str, inputs: str, *, outputs: int = 1, called: str = "", **attributes: Any) -> str:
        """A node; returns the name of its first result, or the names of all, with blanks."""
        name = called or f"{op.lower()}_{len(self.nodes)}"
        names = name if outputs == 1 else " ".join(f"{name}_{i}" for i in range(outputs))
        spec = (op, inputs, names, attributes)
        self.nodes.append(spec)
        known = {one: self._known(one) for one in inputs.split() if one != "_"}
        reads = {one: (value.dtype, value.shape) for one, value in known.items()}
        graph = graph_proto([spec], reads, names.split())
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8)
        session = ort.InferenceSession(onnx.shape_inference.infer_shapes(proto).SerializeToString())
        self.values.update(zip(names.split(), session.run(None, known), strict=True))
        return names

    def _known(self, name: str) -> NDArray[Any]:
        return np.asarray(self.weights[name] if name in self.weights else self.values[name])

    def constant(self, value: Any) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def channels(self, x: str) -> int:
        return int(self.values[x].shape[1])

    def conv(
        self,
        x: str,
        after: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        gain: float | None = None,
        std: float = 1.0,
        mean: float = 0.0,
    ) -> str:
        """A Conv whose results have about this standard deviation and mean.

        Args:
            x: what it reads.
            after: output channels.
            kernel: height and width.
            stride: of both axes.
            gain: noise gain in dB that is aimed at; None: random weights.
            std: of a channel, on average.
            mean: of a channel, on average.
        """
        weight, bias = self.fitted(x, after, kernel, stride, gain=gain, std=std, mean=mean)
        return self.conv_of(x, weight, bias, stride)

    def fitted(
        self, x: str, after: int, kernel: int, stride: int, *, gain: float | None, std: float, mean: float
    ) -> tuple[Array, Array]:
        """Weight and bias of such a Conv."""
        patches = _patches(self.values[x], kernel, stride, self.random)
        rows, bias = self._normalised(patches, self._rows(patches, after, gain), std, mean)
        return rows.reshape(after, -1, kernel, kernel), bias

    def conv_of(self, x: str, weight: NDArray[Any], bias: NDArray[Any], stride: int = 1) -> str:
        """A Conv with these weights."""
        names = f"{self.constant(np.float32(weight))} {self.constant(np.float32(bias))}"
        return self.add("Conv", f"{x} {names}", pads=[weight.shape[-1] // 2] * 4, strides=[stride] * 2)

    def up(self, x: str, after: int, *, gain: float) -> str:
        """A ConvTranspose to twice the size, a tap for each pixel."""
        patches = _patches(self.values[x], 1, 1, self.random)
        rows, _ = self._normalised(patches, self._rows(patches, 4 * after, gain), 1.0, 0.0)
        weight = rows.T.reshape(-1, after, 2, 2)
        return self.add("ConvTranspose", f"{x} {self.constant(np.float32(weight))}", strides=[2, 2])

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def silu(self, x: str) -> str:
        return self.add("Mul", f"{x} {self.add('Sigmoid', x)}")

    def twice(self, x: str, mode: str = "nearest", called: str = "") -> str:
        how = {"nearest": "asymmetric", "linear": "half_pixel", "cubic": "half_pixel"}[mode]
        scales = self.floats(1, 1, 2, 2)
        return self.add("Resize", f"{x} _ {scales}", mode=mode, coordinate_transformation_mode=how, called=called)

    def concat(self, *parts: str, axis: int = 1, called: str = "") -> str:
        return self.add("Concat", " ".join(parts), axis=axis, called=called)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", f"{x} {self.ints(*shape)}")

    def proto(self, *outputs: str, side: int) -> onnx.ModelProto:
        """The net for one picture."""
        return model(
            *self.nodes, inputs={INPUT: (1, 3, side, side)}, outputs=outputs, weights=self.weights, opset=OPSET
        )

    def _rows(self, patches: Array, count: int, gain: float | None) -> Array:
        """Weights of unit length, float32 [count, taps], for a noise gain in dB or the nearest that can be had."""
        free = _unit(self.random.standard_normal((count, patches.shape[1])))
        if gain is None:
            return free
        own = patches - patches.mean(axis=0)
        wanted = np.tanh(_level(own @ free.T))
        power, axes = np.linalg.eigh(own.T @ own)
        shadow = axes.T @ (own.T @ wanted)
        low, high = -4.0, 4.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            ridge = 10**middle * float(power.mean())
            rows = _unit((axes @ (shadow / (np.maximum(power, 0) + ridge)[:, None])).T)
            low, high = (low, middle) if noise_gain(patches, rows) < gain else (middle, high)
        return rows

    def _normalised(self, patches: Array, rows: Array, std: float, mean: float) -> tuple[Array, Array]:
        """Weights and biases as a folded BatchNormalization leaves them."""
        results = patches @ rows.T
        wanted = std * np.exp(self.random.normal(0, UNEVEN, len(rows)))
        factors = wanted / np.maximum(results.std(axis=0), 1e-6)
        bias = mean + self.random.normal(0, SHIFT * std, len(rows)) - results.mean(axis=0) * factors
        return rows * factors[:, None], bias


def noise_gain(patches: Array, rows: Array) -> float:
    """What the rows do to noise over what they do to the patches, in dB."""
    noise = float((rows**2).sum() * np.mean(patches**2))
    return 10 * float(np.log10(noise / (patches @ rows.T).var(axis=0).sum()))


def noise_gains(proto: onnx.ModelProto, seen: Array) -> dict[str, float]:
    """Noise gain in dB of each Conv of a model with constant weights, by its name."""
    weights = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    convs = [node for node in proto.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    asked = onnx.ModelProto()
    asked.CopyFrom(proto)
    names = list(dict.fromkeys(node.input[0] for node in convs))
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != INPUT)
    session = ort.InferenceSession(asked.SerializeToString())
    found = {INPUT: seen}
    for name in names:
        if name != INPUT:
            found[name] = np.concatenate([session.run([name], {INPUT: one[None]})[0] for one in seen])
    random = np.random.default_rng(0)
    gains = {}
    for node in convs:
        weight = weights[node.input[1]]
        stride = next((one.ints[0] for one in node.attribute if one.name == "strides"), 1)
        patches = _patches(found[node.input[0]], weight.shape[-1], stride, random)
        gains[node.name] = noise_gain(patches, weight.reshape(len(weight), -1))
    return gains


def _patches(x: Array, kernel: int, stride: int, random: np.random.Generator) -> Array:
    """What a convolution reads at some positions, float32 [positions, channels * kernel * kernel]."""
    edge = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    picture, _, rows, columns = windows.shape[:4]
    chosen = random.permutation(picture * rows * columns)[:POSITIONS]
    which, row, column = np.unravel_index(chosen, (picture, rows, columns))
    return np.asarray(windows[which, :, row, column].reshape(len(chosen), -1), np.float32)


def _level(values: NDArray[Any]) -> NDArray[Any]:
    """Columns of variance 1."""
    return np.asarray(values / np.maximum(values.std(axis=0), 1e-12))


def _unit(rows: NDArray[Any]) -> Array:
    """Rows of length 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
