"""Checkpoints of tiny models, changed tensor by tensor: quantized as libraries store it, with more or with less."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, Any]
Quantize = Callable[[Any], tuple[Mapping[str, Any], Any]]
"""A weight becomes what is stored in its place, by endings of its name, and what that means."""


def describe(folder: Path, file: str = "config.json", **content: Any) -> None:
    """Adds keys to a JSON file of the folder."""
    path = folder / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | content))


def change(folder: Path, edit: Callable[[Tensors], None]) -> None:
    """Edits the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    kept = {name: value.clone().contiguous() for name, value in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def quantize(folder: Path, how: Quantize, only: str = "proj.weight") -> Tensors:
    """Quantizes the layers of a checkpoint; returns what the weights of the model are then, in float32."""
    right: Tensors = {}

    def edit(tensors: Tensors) -> None:
        right.update({name: value.float() for name, value in tensors.items()})
        for name in [name for name in tensors if name.endswith(only)]:
            parts, means = how(tensors.pop(name).float())
            right[name] = means
            tensors |= {name + ending: value for ending, value in parts.items()}

    change(folder, edit)
    return right


def shard(folder: Path, parts: int = 2) -> None:
    """Deals the tensors of model.safetensors out to files with an index: a weight and its scale lie apart."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        own = {name: tensors[name] for name in sorted(tensors)[part::parts]}
        save_file(own, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def fp8_tensor(weight: Any) -> tuple[Mapping[str, Any], Any]:
    """A scale for the tensor, as modelopt has it."""
    scale = weight.abs().max() / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"": values, "_scale": scale.clone()}, values.float() * scale


def fp8_channel(weight: Any) -> tuple[Mapping[str, Any], Any]:
    """A scale for each row, in BF16, as llm-compressor writes it."""
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    values = (weight / scale.float()).to(torch.float8_e4m3fn)
    return {"": values, "_scale": scale}, values.float() * scale.float()


def fp8_block(weight: Any) -> tuple[Mapping[str, Any], Any]:
    """A scale for each block of 20 x 16, the last of which are cut off, as DeepSeek has it."""
    rows, columns = weight.shape
    scale = torch.rand(-(-rows // 20), -(-columns // 16), generator=torch.Generator().manual_seed(rows)) / 100 + 0.001
    every = scale.repeat_interleave(20, 0)[:rows].repeat_interleave(16, 1)[:, :columns]
    values = (weight / every).to(torch.float8_e4m3fn)
    return {"": values, "_scale_inv": scale}, values.float() * every


def int8_channel(weight: Any) -> tuple[Mapping[str, Any], Any]:
    """INT8 with a scale and a zero point for each row."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round().clamp(-128, 127)
    values = (weight / scale + zero).round().clamp(-128, 127)
    return {"": values.to(torch.int8), "_scale": scale, "_zero_point": zero.to(torch.int8)}, (values - zero) * scale


def int4_packed(weight: Any) -> tuple[Mapping[str, Any], Any]:
    """INT4 in groups of 16 with zero points, eight to a word; the first value in the lowest bits."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, 16)
    low, high = groups.amin(2), groups.amax(2)
    scale = (high - low) / 15
    zero = (-8 - low / scale).round().clamp(-8, 7)
    values = (groups / scale[..., None] + zero[..., None]).round().clamp(-8, 7)
    means = ((values - zero[..., None]) * scale[..., None]).reshape(rows, columns)
    stored = {
        "_packed": words(values.reshape(rows, columns)),
        "_scale": scale,
        "_zero_point": words(zero.T).T,
        "_shape": torch.tensor([rows, columns]),
    }
    return stored, means


def words(values: Any) -> Any:
    """Whole numbers of 4 bits with a sign, eight of a row to an int32."""
    rows, columns = values.shape
    filled = torch.nn.functional.pad(values.to(torch.int64) + 8, (0, -columns % 8)).reshape(rows, -1, 8)
    packed = sum(filled[..., place] << (4 * place) for place in range(8))
    return torch.as_tensor(packed).to(torch.uint32).view(torch.int32)
