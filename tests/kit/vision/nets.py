"""Four small nets that look at pictures, with the heads of their trade and seeded weights, and pictures for them.

Channels differ in size as they do in trained nets, by a factor of some five from the quietest to the loudest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tests.kit.rewrite import Spec, model

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE, SMALL = 64, 32  # pixels on a side; a picture that is made large is small
INPUT = "image"
_UNEVEN = 0.4  # spread of the logarithms of what channels are scaled by
_BINS = 16  # of the distribution over distances, for each side of a box


class _Net:
    """Nodes and weights of one net; methods return the name of what they add."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Spec] = []
        self.weights: dict[str, Any] = {}

    def add(self, op: str, inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append((op, inputs, name, attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def conv(
        self, x: str, before: int, after: int, kernel: int = 3, stride: int = 1, gain: float = 2.0, bias: Any = 0
    ) -> str:
        shape = (after, before, kernel, kernel)
        uneven = np.exp(self.random.normal(0, _UNEVEN, (after, 1, 1, 1)))
        uneven /= np.sqrt(np.mean(uneven**2))
        weight = self.random.normal(0, (gain / (before * kernel**2)) ** 0.5, shape) * uneven
        shift = self.random.normal(0, 0.1, after) + bias
        names = f"{self.constant(weight.astype(np.float32))} {self.constant(shift.astype(np.float32))}"
        return self.add("Conv", f"{x} {names}", pads=[kernel // 2] * 4, strides=[stride] * 2)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def twice(self, x: str, mode: str = "nearest") -> str:
        how = {"nearest": "asymmetric", "linear": "half_pixel", "cubic": "half_pixel"}[mode]
        return self.add("Resize", f"{x} _ {self.floats(1, 1, 2, 2)}", mode=mode, coordinate_transformation_mode=how)

    def concat(self, *parts: str, axis: int = 1) -> str:
        return self.add("Concat", " ".join(parts), axis=axis)

    def called(self, name: str) -> None:
        """The last node writes an output."""
        op, inputs, _, attributes = self.nodes[-1]
        self.nodes[-1] = (op, inputs, name, attributes)

    def proto(self, *outputs: str, side: int = SIZE) -> onnx.ModelProto:
        return model(*self.nodes, inputs={INPUT: (1, 3, side, side)}, outputs=outputs, weights=self.weights, opset=17)


def detector() -> onnx.ModelProto:
    """Two levels of a pyramid with boxes as distributions over distances, scores and landmarks in one output."""
    net = _Net(1)
    x = net.relu(net.conv(INPUT, 3, 24, stride=2))
    levels, channels = [], 24
    for after in (48, 64):
        x = net.relu(net.conv(x, channels, after, stride=2))
        levels.append((x, after))
        channels = after
    pyramid = [levels[-1]]
    for lateral, count in reversed(levels[:-1]):
        above, wide = pyramid[0]
        joined = net.concat(net.twice(above), lateral)
        pyramid.insert(0, (net.relu(net.conv(joined, wide + count, count)), count))
    boxes: list[str] = []
    scores: list[str] = []
    marks: list[str] = []
    for x, count in pyramid:
        tower = net.relu(net.conv(x, count, 32))
        for parts, last in ((boxes, 4 * _BINS), (scores, 8), (marks, 10)):
            head = net.conv(tower, 32, last, 1, gain=0.5, bias=-3.0 if parts is scores else 0)
            parts.append(net.add("Reshape", f"{head} {net.ints(1, last, -1)}"))
    box = _decoded(net, net.concat(*boxes, axis=2))
    score = net.add("Sigmoid", net.concat(*scores, axis=2))
    strides = net.constant(_strides()[None, None])
    mark = net.add("Mul", f"{net.concat(*marks, axis=2)} {strides}")
    net.concat(box, score, mark)
    net.called("output0")
    return net.proto("output0")


def _decoded(net: _Net, distances: str) -> str:
    """Expected distances to the sides, around the middle of each cell, in pixels."""
    bins = net.add("Reshape", f"{distances} {net.ints(1, 4, _BINS, -1)}")
    likely = net.add("Softmax", net.add("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
    weights = net.constant(np.arange(_BINS, dtype=np.float32).reshape(1, _BINS, 1, 1))
    sides = net.add("Reshape", f"{net.add('Conv', f'{likely} {weights}')} {net.ints(1, 4, -1)}")
    near = net.add("Slice", f"{sides} {net.ints(0)} {net.ints(2)} {net.ints(1)}")
    far = net.add("Slice", f"{sides} {net.ints(2)} {net.ints(4)} {net.ints(1)}")
    middles = net.constant(_middles()[None])
    box = net.concat(net.add("Sub", f"{middles} {near}"), net.add("Add", f"{middles} {far}"))
    return net.add("Mul", f"{box} {net.constant(_strides()[None, None])}")


def _strides() -> NDArray[np.float32]:
    return np.concatenate([np.full((SIZE // s) ** 2, s, np.float32) for s in (4, 8)])


def _middles() -> NDArray[np.float32]:
    found = [np.indices((SIZE // s, SIZE // s)).reshape(2, -1)[::-1] + 0.5 for s in (4, 8)]
    return np.concatenate(found, axis=1).astype(np.float32)


def segmenter() -> onnx.ModelProto:
    """Down and up again with what is skipped joined; logits of 12 classes in full size, and the class of each pixel."""
    net = _Net(2)
    x, channels, skipped = INPUT, 3, []
    for after in (24, 32, 48):
        x = net.relu(net.conv(net.relu(net.conv(x, channels, after)), after, after))
        skipped.append((x, after))
        x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        channels = after
    x = net.relu(net.conv(x, channels, 64))
    channels = 64
    for skip, count in reversed(skipped[1:]):
        weight = net.random.normal(0, (2 / channels) ** 0.5, (channels, count, 2, 2)).astype(np.float32)
        up = net.add("ConvTranspose", f"{x} {net.constant(weight)}", strides=[2, 2])
        x = net.relu(net.conv(net.concat(up, skip), 2 * count, count))
        channels = count
    net.twice(net.conv(x, channels, 12, 1, gain=1.0), "linear")
    net.called("logits")
    net.nodes.append(("ArgMax", "logits", "classes", {"axis": 1, "keepdims": 0}))
    return net.proto("logits", "classes")


def keypoints() -> onnx.ModelProto:
    """Heatmaps of 17 joints, where each is expected, and each coordinate by itself as a distribution over bins."""
    net = _Net(3)
    x, channels = INPUT, 3
    for after in (24, 48, 64):
        x = net.relu(net.conv(x, channels, after, stride=2))
        x = net.relu(net.add("Add", f"{x} {net.conv(x, after, after, gain=0.5)}"))
        channels = after
    up = net.relu(net.conv(net.twice(x), channels, 48))
    heat = net.conv(up, 48, 17, 1, gain=1.0)
    net.called("heatmaps")
    heat = "heatmaps"
    side = SIZE // 4
    flat = net.add("Reshape", f"{heat} {net.ints(1, 17, side * side)}")
    likely = net.add("Softmax", flat, axis=-1)
    grid = np.indices((side, side)).reshape(2, -1)[::-1].T.astype(np.float32)
    net.add("MatMul", f"{likely} {net.constant(grid)}")
    net.called("joints")
    tokens = net.add("Reshape", f"{net.conv(x, channels, 17, 1, gain=1.0)} {net.ints(1, 17, (SIZE // 8) ** 2)}")
    for name in ("along_x", "along_y"):
        weight = net.random.normal(0, (SIZE / 8) ** -1, ((SIZE // 8) ** 2, 2 * SIZE)).astype(np.float32)
        net.add("MatMul", f"{tokens} {net.constant(weight)}")
        net.called(name)
    return net.proto("heatmaps", "joints", "along_x", "along_y")


def super_resolution() -> onnx.ModelProto:
    """Residual blocks, pixels out of channels, and the picture itself in twice the size as a start."""
    net = _Net(4)
    first = x = net.relu(net.conv(INPUT, 3, 32))
    for _ in range(3):
        inner = net.conv(net.relu(net.conv(x, 32, 32)), 32, 32)
        x = net.add("Add", f"{x} {net.add('Mul', f'{inner} {net.floats(0.2)}')}")
    x = net.add("Add", f"{first} {net.conv(x, 32, 32)}")
    x = net.add("DepthToSpace", net.conv(x, 32, 64, gain=1.0), blocksize=2, mode="CRD")
    slope = net.constant(np.full((16, 1, 1), 0.2, np.float32))
    fine = net.conv(net.add("PRelu", f"{x} {slope}"), 16, 3, gain=0.05)
    net.add("Add", f"{fine} {net.twice(INPUT, 'cubic')}")
    net.called("large")
    return net.proto("large", side=SMALL)


NETS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "detector": detector,
    "segmenter": segmenter,
    "keypoints": keypoints,
    "super-resolution": super_resolution,
}


def pictures(count: int, seed: int, side: int = SIZE) -> NDArray[np.float32]:
    """Float32 [count, 3, side, side], normalised: surfaces of several sizes with edges, of unlike contrast."""
    random = np.random.default_rng(seed)
    made = np.zeros((count, 3, side, side))
    for cell in (32, 16, 8, 4):
        coarse = random.standard_normal((count, 3, side // cell, side // cell)) * (cell / 32) ** 0.5
        made += np.kron(coarse, np.ones((cell, cell)))
    made *= random.uniform(0.5, 1.3, (count, 1, 1, 1))
    return np.clip(made + random.normal(0, 0.05, made.shape), -2.2, 2.6).astype(np.float32)
