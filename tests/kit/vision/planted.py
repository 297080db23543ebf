"""Small segmentation nets, and the same functions with outlier channels planted between their convolutions.

An output channel of a convolution is made larger, and the weights that read it smaller by as much: in float nothing
changes, but for rounding. In INT8 the channels beside it lose their resolution, which equalization can give back where
what stands between is positively homogeneous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.kit.rewrite import Spec, model

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

SIZE, WIDTH, CLASSES = 24, 24, 5
PADS = {"pads": [1, 1, 1, 1]}
NETS = ("plain", "skip", "depthwise", "deconvolution")


def net(kind: str = "plain", *, factor: float = 1.0, seed: int = 0, act: str = "Relu") -> onnx.ModelProto:
    """The network: `x` float32 [1, 3, SIZE, SIZE] to `y` [1, CLASSES, SIZE, SIZE], random weights.

    Args:
        kind: what is special about it: one of `NETS`.
        factor: of the planted channels, each a power of it up to this; 1 plants none.
        seed: of the weights.
        act: the activation between layers.
    """
    rng = np.random.default_rng([41, seed])
    weights: dict[str, NDArray[np.float32]] = {}

    def conv(name: str, out: int, into: int, size: int = 3) -> None:
        drawn = rng.normal(size=(out, into, size, size)) / np.sqrt(into * size * size / 2)
        weights[f"{name}.w"] = drawn.astype(np.float32)
        weights[f"{name}.b"] = (rng.normal(size=out) / 10).astype(np.float32)

    conv("stem", WIDTH, 3)
    body: list[Spec] = [("Conv", "x stem.w stem.b", "stem", PADS), (act, "stem", "a0")]
    for index in range(1, 5):
        name, before, after = f"c{index}", f"a{index - 1}", f"a{index}"
        if kind == "depthwise" and index % 2:
            conv(name, WIDTH, 1)
            attrs: dict[str, Any] = PADS | {"group": WIDTH}
        else:
            conv(name, WIDTH, WIDTH)
            attrs = PADS
        body += [("Conv", f"{before} {name}.w {name}.b", name, attrs), (act, name, after)]
    last = "a4"
    if kind == "skip":
        conv("mix", WIDTH, WIDTH)
        body += [("Add", "a2 a4", "sum"), ("Conv", "sum mix.w mix.b", "mix", PADS), (act, "mix", "a5")]
        last = "a5"
    if kind == "deconvolution":
        conv("down", WIDTH, WIDTH)
        weights["up.w"] = (rng.normal(size=(WIDTH, WIDTH, 2, 2)) / np.sqrt(WIDTH / 2)).astype(np.float32)
        body += [
            ("Conv", "a4 down.w down.b", "down", PADS | {"strides": [2, 2]}),
            (act, "down", "a5"),
            ("ConvTranspose", "a5 up.w", "up", {"strides": [2, 2]}),
            (act, "up", "a6"),
        ]
        last = "a6"
    conv("head", CLASSES, WIDTH, 1)
    body.append(("Conv", f"{last} head.w head.b", "y"))
    _plant(weights, factor, rng)
    return model(*body, inputs={"x": (1, 3, SIZE, SIZE)}, outputs=("y",), weights=weights)


def _plant(weights: dict[str, NDArray[np.float32]], factor: float, rng: np.random.Generator) -> None:
    """Three channels between each two layers of the trunk, of all layers that the trunk has."""
    for before, after in (("stem", "c1"), ("c1", "c2"), ("c2", "c3"), ("c3", "c4")):
        channels = rng.choice(WIDTH, 3, replace=False)
        sizes = factor ** np.array([0.6, 0.8, 1.0], np.float32)
        if before == "c2" and "mix.w" in weights:
            continue  # what an Add ties to another layer
        weights[f"{before}.w"][channels] *= sizes[:, None, None, None]
        weights[f"{before}.b"][channels] *= sizes
        if weights[f"{after}.w"].shape[1] == 1:
            weights[f"{after}.w"][channels] /= sizes[:, None, None, None]
        else:
            weights[f"{after}.w"][:, channels] /= sizes[:, None, None]


def feeds(count: int, seed: int = 0) -> list[dict[str, NDArray[np.float32]]]:
    """Smooth pictures of noise."""
    rng = np.random.default_rng([43, seed])
    found = []
    for _ in range(count):
        noise = rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
        found.append({"x": np.asarray((noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)) / 2, np.float32)})
    return found
