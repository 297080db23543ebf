"""Weights of a few bits as other libraries pack them, written from the description of their formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
NF4 = (-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
Stored = tuple[Mapping[str, Any], Any]
"""Tensors by the ending of their name, and the weight that they mean."""


def stream(numbers: list[int], bits: int) -> list[int]:
    """Numbers one behind the other, lowest bits first, cut into signed 32-bit words."""
    whole = sum(number << (bits * at) for at, number in enumerate(numbers))
    words = [(whole >> (32 * at)) & 0xFFFFFFFF for at in range(len(numbers) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def _rows(values: Any, bits: int) -> Any:
    return torch.tensor([stream([int(one) for one in row], bits) for row in values], dtype=torch.int32)


def _drawn(outputs: int, inputs: int, groups: int, bits: int, seed: int) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 1 << bits, (outputs, inputs), generator=generator)
    zeros = torch.randint(1, 1 << bits, (groups, outputs), generator=generator)
    scales = (torch.rand(groups, outputs, generator=generator) / 50 + 0.001).half()
    return numbers, zeros, scales


def gptq(weight: Any, bits: int = 4, version: int = 1, ordered: bool = True, groups: int = 2) -> Stored:
    """GPTQ: rows of inputs in words; zero points less one in version 1; groups by column where not ordered."""
    outputs, inputs = weight.shape
    numbers, zeros, scales = _drawn(outputs, inputs, groups, bits, inputs)
    index = torch.arange(inputs) // (inputs // groups)
    if not ordered:
        index = index[torch.randperm(inputs, generator=torch.Generator().manual_seed(3))]
    stored = {
        "qweight": _rows(numbers, bits).T.contiguous(),
        "qzeros": _rows(zeros - int(version == 1), bits),
        "scales": scales,
        "g_idx": index.int(),
    }
    means = torch.stack(
        [(numbers[:, at] - zeros[index[at]]).float() * scales[index[at]].float() for at in range(inputs)], dim=1
    )
    return stored, means


def awq(weight: Any, groups: int = 2) -> Stored:
    """AWQ (gemm): eight columns of outputs in a word, in the order 0 2 4 6 1 3 5 7."""
    outputs, inputs = weight.shape
    numbers, zeros, scales = _drawn(outputs, inputs, groups, 4, outputs)

    def columns(values: Any) -> Any:
        shuffled = values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape)
        return _rows(shuffled, 4)

    stored = {"qweight": columns(numbers.T), "qzeros": columns(zeros), "scales": scales}
    size = inputs // groups
    parts = [
        (numbers[:, at].long() - zeros[at // size].long()).float() * scales[at // size].float() for at in range(inputs)
    ]
    return stored, torch.stack(parts, dim=1)


def _halves(codes: Any, low_first: bool) -> Any:
    first, second = codes[..., 0::2], codes[..., 1::2]
    low, high = (first, second) if low_first else (second, first)
    return (low | (high << 4)).to(torch.uint8)


def nvfp4(weight: Any, divided: bool = False) -> Stored:
    """NVFP4: a scale in FP8 for 16 values and one in FP32 for all, by which compressed-tensors divides."""
    outputs, inputs = weight.shape
    generator = torch.Generator().manual_seed(inputs)
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator)
    scale = (torch.rand(outputs, inputs // 16, generator=generator) * 100 + 1).to(torch.float8_e4m3fn)
    whole = torch.tensor(1 / 256) if not divided else torch.tensor(256.0)
    means = torch.tensor(E2M1)[codes] * (scale.float() / 256).repeat_interleave(16, 1)
    if divided:
        return {"weight_packed": _halves(codes, True), "weight_scale": scale, "weight_global_scale": whole}, means
    return {"weight": _halves(codes, True), "weight_scale": scale, "weight_scale_2": whole}, means


def mxfp4(weight: Any) -> Stored:
    """MXFP4: a power of two for 32 values."""
    outputs, inputs = weight.shape
    generator = torch.Generator().manual_seed(inputs)
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator)
    powers = torch.randint(118, 124, (outputs, inputs // 32), generator=generator)
    means = torch.tensor(E2M1)[codes] * (2.0 ** (powers - 127).float()).repeat_interleave(32, 1)
    return {"weight_packed": _halves(codes, True), "weight_scale": powers.to(torch.uint8)}, means


def nf4(weight: Any, nested: bool = False, block: int = 64) -> Stored:
    """bitsandbytes: codes of a table, the first value in the high half of a byte, a largest value for each block."""
    generator = torch.Generator().manual_seed(weight.numel())
    codes = torch.randint(0, 16, (weight.numel(),), generator=generator)
    most = torch.rand(weight.numel() // block, generator=generator) + 0.1
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    stored = {"weight": _halves(codes, False).reshape(-1, 1), "weight.quant_map": torch.tensor(NF4)}
    if nested:
        table = torch.linspace(-1, 1, 256)
        places = torch.randint(100, 256, most.shape, generator=generator)
        outer = torch.rand(-(-most.numel() // 8), generator=generator) + 0.5
        most = table[places] * outer.repeat_interleave(8)[: most.numel()] + 0.75
        state |= {"nested_blocksize": 8, "nested_offset": 0.75, "nested_dtype": "float32"}
        stored |= {"weight.absmax": places.to(torch.uint8), "weight.nested_absmax": outer}
        stored["weight.nested_quant_map"] = table
    else:
        stored["weight.absmax"] = most
    stored["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    means = torch.tensor(NF4)[codes] * most.repeat_interleave(block)
    return stored, means.reshape(weight.shape)
