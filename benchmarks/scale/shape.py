"""The sizes of the decoders that are made here, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """A decoder like Llama: RMSNorm, rotary positions, grouped queries, SwiGLU.

    Attributes:
        layers: Blocks, one behind the other.
        width: Channels of the residual stream.
        inner: Channels between gate, up and down.
        heads: Heads of the queries.
        pairs: Heads of keys and values; divides `heads`.
        vocabulary: Tokens; 1 is the one that begins every text.
        half: Whether weights and activations are FP16 instead of FP32.
        tied: Whether the head reads the table of embeddings.
        outliers: Whether norms have outlier channels, and the first token massive activations from an early block on.
        positions: The longest text.
        seed: Of the weights.
    """

    layers: int
    width: int
    inner: int
    heads: int
    pairs: int
    vocabulary: int = 32_000
    half: bool = True
    tied: bool = False
    outliers: bool = True
    positions: int = 2048
    seed: int = 0

    @property
    def head(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """All weights, each counted once."""
        attention = 2 * self.width * self.width + 2 * self.width * self.pairs * self.head
        block = attention + 3 * self.width * self.inner + 2 * self.width
        ends = self.vocabulary * self.width * (1 if self.tied else 2) + self.width
        return self.layers * block + ends

    @property
    def weight_bytes(self) -> int:
        """What they take in the file."""
        return self.parameters * (2 if self.half else 4)

    def deep(self, layers: int) -> Shape:
        """The same with another number of blocks."""
        return replace(self, layers=layers)


def _stack(width: int, inner: int, layers: int) -> Shape:
    heads = width // 64
    return Shape(layers, width, inner, heads, heads, vocabulary=1024, half=False, outliers=False, positions=256)


SHAPES = {
    "llama-tiny": Shape(4, 256, 704, 4, 2, vocabulary=1024, positions=256),
    "llama-400m": Shape(24, 1024, 3584, 16, 4),
    "llama-1b": Shape(22, 2048, 5632, 32, 4),
    "llama-7b": Shape(32, 4096, 14336, 32, 8),
    "stack-512x4": _stack(512, 1408, 4),
    "stack-1024x8": _stack(1024, 2816, 8),
    "stack-2048x8": _stack(2048, 5632, 8),
    "stack-2048x16": _stack(2048, 5632, 16),
}
