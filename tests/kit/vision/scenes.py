"""Pictures of a few things on surfaces, as small detectors are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

CELLS = (16, 8)  # pixels of the surface's patches
MARKS = np.array([(-0.28, -0.21), (0.28, -0.21), (0.0, 0.0), (-0.21, 0.28), (0.21, 0.28)])  # of a thing, from -1 to 1


def pictures(count: int, seed: int, side: int = 64) -> Array:
    """Float32 [count, 3, side, side], 0 to 1: one to four things on surfaces."""
    random = np.random.default_rng(seed)
    return np.stack([_picture(random, side) for _ in range(count)])


def _picture(random: np.random.Generator, side: int) -> Array:
    rows, columns = np.mgrid[:side, :side] + 0.5
    image = np.zeros((3, side, side)) + random.uniform(0.2, 0.7, (3, 1, 1)) + random.uniform(0, 0.3) * columns / side
    for cell in CELLS:
        coarse = random.standard_normal((3, side // cell, side // cell))
        image += random.uniform(0.02, 0.12) * np.kron(coarse, np.ones((cell, cell)))
    for _ in range(random.integers(1, 5)):
        _draw(image, rows, columns, random)
    image = image * random.uniform(0.5, 1.1) + random.normal(0, 0.02, image.shape)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _draw(image: NDArray[np.float64], rows: Array, columns: Array, random: np.random.Generator) -> None:
    side = image.shape[-1]
    wide, high = np.exp(random.uniform(np.log(side / 6), np.log(side / 1.5), 2))
    x, y = random.uniform(wide / 2, side - wide / 2), random.uniform(high / 2, side - high / 2)
    u, v = (columns - x) / (wide / 2), (rows - y) / (high / 2)
    triangle = np.maximum(np.abs(v), np.abs(u) * 2 / np.maximum(v + 1, 1e-3))
    shapes = (np.maximum(np.abs(u), np.abs(v)), u * u + v * v, np.abs(u) + np.abs(v), triangle)
    inside = shapes[int(random.integers(4))] < 1
    image[:, inside] = random.uniform(0, 1, (3, 1)) + random.normal(0, 0.03, (3, int(inside.sum())))
    colour = random.uniform(0, 1, (3, 1))
    for right, down in MARKS:
        image[:, (u - right) ** 2 + (v - down) ** 2 < 0.02] = colour
