"""Weights of a decoder, drawn a few rows at a time: as many as there are never lie in memory.

What makes real ones hard to quantize is planted. A few channels of every norm have gains that are ten times as large,
and what reads them is smaller by about as much; a few channels of the residual stream are loud. In an early block one
inner channel answers to the token that begins a text with an activation of some hundreds, which `down` puts on two
channels of the residual stream, where it stays until the last block but one takes it away: the massive activations
that large language models have (Sun et al. 2024).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.scale.shape import Shape

Floats = np.ndarray[Any, np.dtype[np.float32]]

ROWS_AT_ONCE = 1 << 22  # elements drawn at once
BEGINNING = 1  # the token that begins a text
ANSWER = 30.0  # of gate and up where the massive activation arises: their product is some 900


@dataclass(frozen=True)
class Weight:
    """A weight that is drawn when it is written.

    Attributes:
        name: Of the tensor.
        shape: `[rows, columns]`; rows are input channels.
        deviation: Standard deviation of its elements.
        rows: Factors, `[rows]`, or None.
        columns: Factors, `[columns]`, or None.
        put_rows: Rows that are given instead of drawn.
        put_columns: Columns that are given instead of drawn.
    """

    name: str
    shape: tuple[int, int]
    deviation: float
    rows: Floats | None = None
    columns: Floats | None = None
    put_rows: Mapping[int, Floats] = field(default_factory=dict)
    put_columns: Mapping[int, Floats] = field(default_factory=dict)

    def blocks(self, seed: int) -> Iterator[Floats]:
        """FP32 rows, some at a time, from the first to the last."""
        draw = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        height, width = self.shape
        step = max(1, ROWS_AT_ONCE // width)
        for start in range(0, height, step):
            stop = min(start + step, height)
            block = draw.standard_normal((stop - start, width), dtype=np.float32)
            block *= np.float32(self.deviation)
            if self.rows is not None:
                block *= self.rows[start:stop, None]
            if self.columns is not None:
                block *= self.columns
            for row, values in self.put_rows.items():
                if start <= row < stop:
                    block[row - start] = values
            for column, values in self.put_columns.items():
                block[:, column] = values[start:stop]
            yield block


class Weights:
    """All weights of a decoder, each by its name."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        draw = np.random.default_rng([shape.seed, 1])
        width = shape.width
        few = max(2, width // 512) if shape.outliers else 0
        chosen = draw.permutation(width)
        self._loud, self._outlying = chosen[:few], chosen[few : 2 * few]
        self._massive = chosen[2 * few : 2 * few + 2]
        direction = draw.standard_normal(width).astype(np.float32)
        self._direction = direction / np.linalg.norm(direction)

    def gain(self, name: str) -> Floats:
        """Of a norm, FP32 `[width]`."""
        draw = np.random.default_rng([self._shape.seed, zlib.crc32(name.encode())])
        if not self._shape.outliers:
            return np.ones(self._shape.width, np.float32)
        gain = np.exp(draw.normal(0, 0.25, self._shape.width)).astype(np.float32)
        gain[self._outlying] *= draw.uniform(8, 20, len(self._outlying)).astype(np.float32)
        if self._shape.tied and name == "norm":  # the table is not scaled for a head
            gain *= np.float32(3 / np.sqrt(self._shape.width))
        return gain

    def embedding(self) -> Weight:
        """The table of tokens, `[vocabulary, width]`."""
        shape = self._shape
        first = {BEGINNING: self._direction * np.float32(np.sqrt(shape.width))} if shape.outliers else {}
        return Weight("embed", (shape.vocabulary, shape.width), 1, columns=self._loudness(6), put_rows=first)

    def head(self) -> Weight:
        """The head, `[width, vocabulary]`."""
        shape = self._shape
        rows = self._quiet(self.gain("norm"))
        return Weight("lm_head", (shape.width, shape.vocabulary), 2 / np.sqrt(shape.width), rows)

    def block(self, layer: int) -> Iterator[Weight]:
        """q, k, v, o, gate, up and down of a block."""
        shape, at = self._shape, f"layers.{layer}"
        width, inner, pairs = shape.width, shape.inner, shape.pairs * shape.head
        calm = 1 / np.sqrt(2 * shape.layers)
        first, second = (self._quiet(self.gain(f"{at}.norm{norm}")) for norm in (1, 2))
        for name, columns in (("q", width), ("k", pairs), ("v", pairs)):
            yield Weight(f"{at}.{name}", (width, columns), 1 / np.sqrt(width), first)
        yield Weight(f"{at}.o", (width, width), calm / np.sqrt(width), columns=self._loudness(4))
        answers, puts = self._spike(layer)
        for name in ("gate", "up"):
            yield Weight(f"{at}.{name}", (width, inner), 1 / np.sqrt(width), second, put_columns=answers)
        deviation = 2 * calm / np.sqrt(inner)
        yield Weight(f"{at}.down", (inner, width), deviation, columns=self._loudness(4), put_rows=puts)

    def _quiet(self, gain: Floats) -> Floats | None:
        """What reads a loud channel weighs it less."""
        return gain ** np.float32(-0.7) if self._shape.outliers else None

    def _loudness(self, factor: float) -> Floats | None:
        if not self._shape.outliers:
            return None
        columns = np.ones(self._shape.width, np.float32)
        columns[self._loud] = factor
        return columns

    def _spike(self, layer: int) -> tuple[dict[int, Floats], dict[int, Floats]]:
        """Columns of gate and up, and a row of down, where the massive activations come and where they go."""
        shape = self._shape
        comes, goes = min(1, shape.layers - 1), shape.layers - 2
        if not shape.outliers or layer not in (comes, goes):
            return {}, {}
        gain, channel = self.gain(f"layers.{layer}.norm2"), shape.inner // 3
        signs = np.zeros(shape.width, np.float32)
        signs[self._massive] = 1, -1
        if layer == comes:
            reads = self._direction * np.float32(ANSWER / (0.8 * np.sqrt(shape.width)))
            return {channel: reads / gain}, {channel: signs}
        reads = signs * np.float32(ANSWER / np.sqrt(2 * shape.width))  # of the two alone, the norm leaves √(width / 2)
        return {channel: reads / gain}, {channel: -signs}
