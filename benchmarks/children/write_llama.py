"""Writes a Llama-like folder of any size as transformers has it, a few MB at a time: config.json and safetensors.

Its weights are stretches of random numbers, with what makes real ones hard to quantize: tails of Student's t, a few
channels of the residual stream that all layers write more into, and norms that are larger there.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

SHARD = 2 * 10**9
"""Bytes of a file."""
_ROWS = 4 << 20  # elements that are made together
_LOUD, _BOOST = 6, 20.0  # channels of the residual stream, and how much larger they are
Shape = tuple[int, ...]
Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def main(folder: str, width: str = "4096", layers: str = "32", vocabulary: str = "32000", kind: str = "F16") -> None:
    """Writes the folder; by default it has 6.7 billion parameters. `kind`: "F16" or "F32"."""
    size = int(width)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size,
        "intermediate_size": -(-size * 43 // 16 // 16) * 16,
        "num_hidden_layers": int(layers),
        "num_attention_heads": max(1, size // 128),
        "num_key_value_heads": max(1, size // 128),
        "vocab_size": int(vocabulary),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16" if kind == "F16" else "float32",
    }
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config, indent=1))
    dtype = np.dtype(np.float16 if kind == "F16" else np.float32)
    shards = list(_shards(list(_tensors(config)), dtype.itemsize))
    where: dict[str, str] = {}
    for at, shard in enumerate(shards, start=1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        _write(place / name, shard, kind, dtype, size)
        where |= {tensor: name for tensor, _ in shard}
    total = sum(math.prod(shape) for shard in shards for _, shape in shard) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(config: dict[str, object]) -> Iterator[tuple[str, Shape]]:
    width, inner, words, layers = (
        int(str(config[key])) for key in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers")
    )
    yield "model.embed_tokens.weight", (words, width)
    for at in range(layers):
        layer = f"model.layers.{at}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.self_attn.{name}.weight", (width, width)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (words, width)


def _shards(tensors: list[tuple[str, Shape]], item: int) -> Iterator[list[tuple[str, Shape]]]:
    held: list[tuple[str, Shape]] = []
    for name, shape in tensors:
        if held and sum(math.prod(one) for _, one in (*held, (name, shape))) * item > SHARD:
            yield held
            held = []
        held.append((name, shape))
    yield held


def _write(path: Path, tensors: list[tuple[str, Shape]], kind: str, dtype: np.dtype[np.generic], width: int) -> None:
    about: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        end = at + math.prod(shape) * dtype.itemsize
        about[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for name, shape in tensors:
            for piece in _values(name, shape, width):
                stream.write(piece.astype(dtype).tobytes())


def _values(name: str, shape: Shape, width: int) -> Iterator[Array]:
    """Rows of a weight, a few at a time; the same name gives the same numbers."""
    random = np.random.default_rng(list(name.encode()))
    loud = np.random.default_rng(width).choice(width, min(_LOUD, width), replace=False)
    if len(shape) == 1:
        gain = np.abs(random.normal(1.0, 0.1, shape)).astype(np.float32)
        gain[loud] *= 4
        yield gain
        return
    rows = max(1, _ROWS // shape[1])
    for at in range(0, shape[0], rows):
        count = min(rows, shape[0] - at)
        start = int(random.integers(0, _drawn().size - count * shape[1] + 1))
        piece = _drawn()[start : start + count * shape[1]].reshape(count, shape[1]) / np.float32(shape[1] ** 0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # they write into the residual stream
            piece[[one - at for one in loud if at <= one < at + count]] *= _BOOST
        yield piece


@lru_cache(maxsize=1)
def _drawn() -> Array:
    """Numbers with tails, of variance 1: drawing each anew would take longer than all the rest."""
    drawn: Array = (np.random.default_rng(0).standard_t(6, 4 * _ROWS) / 1.5**0.5).astype(np.float32)
    return drawn


if __name__ == "__main__":
    main(*sys.argv[1:])
