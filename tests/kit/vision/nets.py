"""Nets that look at pictures, built as people build them, with weights as training leaves them (see `eager`).

A detector with three levels, residual blocks, a pyramid up and down again, distances as distributions, scores and
landmarks; a segmenter with skips; a residual keypoint net with deconvolutions; a residual net for super-resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx

from tests.kit.vision.eager import INPUT, Net
from tests.kit.vision.scenes import pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE, SMALL = 64, 32  # pixels on a side; a picture that is made large is small
SEEN = 128  # pictures that weights follow
CLASSES, BINS, POINTS = 4, 16, 5
STRIDES = (8, 16, 32)
BINS_WIDE = 8.0  # variance of a distribution over distances, in cells²
# noise gains in dB, as trained nets have them
STEM, FRONT, NECK, DOWN, HEAD, LAST = -1.5, -3.5, -6.5, -11.0, -11.5, -5.0


@cache
def detector() -> onnx.ModelProto:
    """Three levels with boxes as distributions over distances, scores and landmarks in one output [1, 18, 84]."""
    net = Net(1, pictures(SEEN, 0, SIZE))
    x = _block(net, INPUT, 16, stride=2, gain=None)
    x = _c2f(net, _block(net, x, 32, stride=2, gain=STEM), 32, gain=STEM)
    p3 = _c2f(net, _block(net, x, 48, stride=2, gain=FRONT), 48, 2, gain=FRONT)
    p4 = _c2f(net, _block(net, p3, 64, stride=2, gain=FRONT), 64, 2, gain=FRONT)
    p5 = _pooled(net, _c2f(net, _block(net, p4, 96, stride=2, gain=FRONT), 96, gain=FRONT), 96)
    t4 = _c2f(net, net.concat(net.twice(p5), p4), 64, gain=NECK, residual=False)
    t3 = _c2f(net, net.concat(net.twice(t4), p3), 48, gain=NECK, residual=False)
    n4 = _c2f(net, net.concat(_block(net, t3, 48, stride=2, gain=DOWN), t4), 64, gain=NECK, residual=False)
    n5 = _c2f(net, net.concat(_block(net, n4, 64, stride=2, gain=DOWN), p5), 96, gain=NECK, residual=False)
    boxes, scores, marks = [], [], []
    for level in (t3, n4, n5):
        boxes.append(_flat(net, _distances(net, _tower(net, level, 32))))
        scores.append(_flat(net, net.conv(_tower(net, level, 32), CLASSES, 1, gain=LAST, std=0.9, mean=-3.0)))
        marks.append(_flat(net, net.conv(_tower(net, level, 24), 2 * POINTS, 1, gain=LAST, std=0.5)))
    box = _decoded(net, net.concat(*boxes, axis=2))
    score = net.add("Sigmoid", net.concat(*scores, axis=2))
    middles = net.constant(np.tile(_middles(), (POINTS, 1))[None])
    mark = net.add("Add", f"{net.concat(*marks, axis=2)} {middles}")
    net.concat(box, score, net.add("Mul", f"{mark} {net.constant(_strides())}"), called="output0")
    return net.proto("output0", side=SIZE)


def _block(net: Net, x: str, after: int, kernel: int = 3, *, stride: int = 1, gain: float | None) -> str:
    return net.silu(net.conv(x, after, kernel, stride, gain=gain))


def _c2f(net: Net, x: str, after: int, depth: int = 1, *, gain: float, residual: bool = True) -> str:
    """Half of the channels go through bottlenecks one behind the other; all that comes up on the way is joined."""
    first = _block(net, x, after, 1, gain=gain)
    half = net.ints(after // 2, after // 2)
    parts = net.add("Split", f"{first} {half}", axis=1, outputs=2).split()
    for _ in range(depth):
        inner = _block(net, _block(net, parts[-1], after // 2, gain=gain), after // 2, gain=gain)
        parts.append(net.add("Add", f"{parts[-1]} {inner}") if residual else inner)
    return _block(net, net.concat(*parts), after, 1, gain=gain)


def _pooled(net: Net, x: str, after: int) -> str:
    """What is largest in wider and wider windows, joined."""
    parts = [_block(net, x, after // 2, 1, gain=FRONT)]
    for _ in range(3):
        parts.append(net.add("MaxPool", parts[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
    return _block(net, net.concat(*parts), after, 1, gain=FRONT)


def _tower(net: Net, x: str, after: int) -> str:
    return _block(net, _block(net, x, after, gain=HEAD), after, gain=HEAD)


def _distances(net: Net, x: str) -> str:
    """Logits of bins around a distance for each side: what is learned is four numbers, spread over bins."""
    weight, offset = net.fitted(x, 4, 1, 1, gain=LAST, std=1.5, mean=3.0)
    taps = weight[:, None, :, 0, 0]
    bins = np.arange(BINS)[None, :]
    rows = taps * (bins / BINS_WIDE)[..., None] + net.random.normal(0, 0.03, (4, BINS, taps.shape[-1]))
    return net.conv_of(
        x, rows.reshape(4 * BINS, -1, 1, 1), ((bins * offset[:, None] - bins**2 / 2) / BINS_WIDE).ravel()
    )


def _flat(net: Net, x: str) -> str:
    return net.reshape(x, 0, net.channels(x), -1)


def _decoded(net: Net, distances: str) -> str:
    """Middle and size of each box in pixels, from the expected distances to its sides."""
    bins = net.reshape(distances, 0, 4, BINS, -1)
    likely = net.add("Softmax", net.add("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
    weights = net.constant(np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1))
    sides = net.reshape(net.add("Conv", f"{likely} {weights}"), 0, 4, -1)
    near, far = net.add("Split", f"{sides} {net.ints(2, 2)}", axis=1, outputs=2).split()
    middles = net.constant(_middles()[None])
    first, last = net.add("Sub", f"{middles} {near}"), net.add("Add", f"{middles} {far}")
    middle = net.add("Div", f"{net.add('Add', f'{first} {last}')} {net.floats(2)}")
    return net.add("Mul", f"{net.concat(middle, net.add('Sub', f'{last} {first}'))} {net.constant(_strides())}")


def _strides() -> NDArray[np.float32]:
    return np.concatenate([np.full((SIZE // s) ** 2, s, np.float32) for s in STRIDES])[None, None]


def _middles() -> NDArray[np.float32]:
    found = [np.indices((SIZE // s, SIZE // s)).reshape(2, -1)[::-1] + 0.5 for s in STRIDES]
    return np.concatenate(found, axis=1).astype(np.float32)


@cache
def segmenter() -> onnx.ModelProto:
    """Four times down and up again with what is skipped joined; logits of 5 classes, and the class of each pixel."""
    net = Net(2, pictures(SEEN, 0, SIZE))
    x, skipped = INPUT, []
    gains = ((None, 1.0), (-0.5, -6.0), (-5.5, -8.5), (-6.0, -8.0))
    for after, (first, second) in zip((16, 32, 48, 64), gains, strict=True):
        x = _pair(net, x, after, first, second)
        skipped.append((x, after))
        x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = _pair(net, x, 96, -8.5, -10.0)
    for skip, count in reversed(skipped):
        x = _pair(net, net.concat(net.up(x, count, gain=-5.0), skip), count, -9.0, -7.0)
    net.conv(x, 5, 1, gain=0.0, std=1.5)
    logits = net.nodes[-1][2]
    net.add("Identity", logits, called="logits")
    net.add("ArgMax", "logits", axis=1, keepdims=0, called="classes")
    return net.proto("logits", "classes", side=SIZE)


def _pair(net: Net, x: str, after: int, first: float | None, second: float) -> str:
    return net.relu(net.conv(net.relu(net.conv(x, after, gain=first)), after, gain=second))


@cache
def keypoints() -> onnx.ModelProto:
    """A residual net of eight blocks and two deconvolutions: heatmaps of 5 joints, where each is expected, and bins."""
    net = Net(3, pictures(SEEN, 0, SIZE))
    x = net.relu(net.conv(INPUT, 24, stride=2))
    blocks = ((24, 1, 2.0), (24, 1, 1.5), (48, 2, 1.0), (48, 1, 0.0), (64, 2, -1.5), (64, 1, -2.0), (96, 2, -1.5))
    for after, stride, gain in (*blocks, (96, 1, -2.0)):
        x = _residual(net, x, after, stride, gain)
    bins = net.conv(x, POINTS, 1, gain=LAST)
    for after in (64, 48):
        x = net.relu(net.up(x, after, gain=-4.0))
    side = int(net.values[x].shape[-1])
    heat = net.conv(x, POINTS, 1, gain=LAST, std=0.3, mean=0.1)
    net.add("Identity", heat, called="heatmaps")
    likely = net.add("Softmax", net.add("Mul", f"{net.reshape('heatmaps', 0, POINTS, -1)} {net.floats(10)}"), axis=-1)
    grid = np.indices((side, side)).reshape(2, -1)[::-1].T.astype(np.float32)
    net.add("MatMul", f"{likely} {net.constant(grid)}", called="joints")
    tokens = net.reshape(bins, 0, POINTS, -1)
    cells = int(net.values[tokens].shape[-1])
    for name in ("along_x", "along_y"):
        weight = net.random.normal(0, cells**-0.5, (cells, 2 * SIZE)).astype(np.float32)
        net.add("MatMul", f"{tokens} {net.constant(weight)}", called=name)
    return net.proto("heatmaps", "joints", "along_x", "along_y", side=SIZE)


def _residual(net: Net, x: str, after: int, stride: int, gain: float) -> str:
    inner = net.conv(net.relu(net.conv(x, after, stride=stride, gain=gain)), after, gain=gain)
    same = stride == 1 and net.channels(x) == after
    return net.relu(net.add("Add", f"{inner} {x if same else net.conv(x, after, 1, stride, gain=1.5)}"))


@cache
def super_resolution() -> onnx.ModelProto:
    """Eight residual blocks, pixels out of channels, and the picture itself in twice the size as a start."""
    net = Net(4, pictures(SEEN, 0, SMALL))
    first = x = net.conv(INPUT, 32, std=0.1)
    for _ in range(8):
        inner = net.conv(net.relu(net.conv(x, 32, gain=6.0, std=0.07)), 32, gain=6.0, std=0.03)
        x = net.add("Add", f"{x} {inner}")
    x = net.add("Add", f"{first} {net.conv(x, 32, gain=5.5, std=0.06)}")
    x = net.add("DepthToSpace", net.conv(x, 128, gain=4.0, std=0.05), blocksize=2, mode="CRD")
    fine = net.conv(x, 3, std=0.02)
    net.add("Add", f"{fine} {net.twice(INPUT, 'cubic')}", called="large")
    return net.proto("large", side=SMALL)


NETS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "detector": detector,
    "segmenter": segmenter,
    "keypoints": keypoints,
    "super-resolution": super_resolution,
}
PARTS: Mapping[str, Mapping[str, Sequence[slice]]] = {  # of outputs that are joined: middles, sizes, scores, landmarks
    "detector": {"output0": [slice(0, 2), slice(2, 4), slice(4, 4 + CLASSES), slice(4 + CLASSES, None)]},
}
