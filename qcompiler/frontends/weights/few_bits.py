"""Weights that libraries pack into 2 to 8 bits of their own formats, in float32: GPTQ, AWQ, NVFP4, MXFP4, bitsandbytes.

Each is level * scale, or (number - zero point) * scale, in float32 with the numbers of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.weights.checkpoint import Checkpoint

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns the first, second, ... four bits of a word hold."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the sixteen codes of FP4."""
FORMATS = ("gptq", "awq")
"""Methods whose weights are in these formats alone."""
_WORD = 32
Parts = Mapping[str, str]
Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Packed:
    """A weight in few bits.

    Attributes:
        name: of the weight, as the class knows it.
        kind: the format, in words.
        parts: names of the tensors that it is made of, by what they are.
        read: makes the weight of them.
    """

    name: str
    kind: str
    parts: Parts
    read: Callable[[Parts, Tensors], Any]


def packed(stored: Checkpoint) -> Iterator[Packed]:
    """The weights of a checkpoint that are in one of these formats.

    Raises:
        ModelError: one is, and it cannot be told how its zero points are stored, or its sizes do not fit.
    """
    for name in stored.tensors:
        owner, _, last = name.rpartition(".")
        if last == "qweight" and f"{owner}.scales" in stored.tensors and f"{owner}.qzeros" in stored.tensors:
            _check_matrices(owner, stored)
            yield _gptq_or_awq(owner, stored)
        elif f"{name}.absmax" in stored.tensors:
            yield _bitsandbytes(name, stored)
        elif stored.tensors[name].dtype == "U8":
            yield from _fp4(name, stored)


def made(one: Packed, tensors: Tensors, stored: Checkpoint) -> Any:
    """The weight in float32.

    Raises:
        ModelError: the tensors that it is made of do not fit each other.
    """
    try:
        return one.read(one.parts, tensors)
    except (RuntimeError, IndexError, KeyError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{name} {stored.tensors[name].shape}" for name in one.parts.values())
        raise ModelError(
            f"'{one.name}' in '{stored.folder}' is {one.kind}, and its tensors do not fit each other ({shapes}): "
            f"{type(error).__name__}: {' '.join(str(error).split())[:150].rstrip('.')}. Fetch the folder again."
        ) from error


def _check_matrices(owner: str, stored: Checkpoint) -> None:
    names = [f"{owner}.{one}" for one in ("qweight", "qzeros", "scales")]
    shapes = [stored.tensors[name].shape for name in names]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        listed = ", ".join(f"'{name}' {shape}" for name, shape in zip(names, shapes, strict=True))
        raise ModelError(f"{listed} in '{stored.folder}' are no packed weight: fetch the folder again.")


def _gptq_or_awq(owner: str, stored: Checkpoint) -> Packed:
    """Shapes tell them apart: GPTQ packs rows of the inputs into words, AWQ columns of the outputs."""
    parts = {
        one: f"{owner}.{one}" for one in ("qweight", "qzeros", "scales", "g_idx") if f"{owner}.{one}" in stored.tensors
    }
    shapes = {one: stored.tensors[name].shape for one, name in parts.items()}
    label = f"'{owner}.qweight' in '{stored.folder}'"
    rows, columns = shapes["qweight"]
    outputs = shapes["scales"][1]
    if columns * 8 == outputs and "g_idx" not in parts:
        said = [str(one.detail.get("version") or "gemm").lower() for one in stored.declared if one.method == "awq"]
        if set(said) - {"gemm"}:
            raise ModelError(
                f"{label} is packed by AWQ for '{said[0]}', and only 'gemm' is read: export the float model."
            )
        return Packed(f"{owner}.weight", "INT4 of AWQ", parts, _awq)
    if columns != outputs:
        raise ModelError(
            f"{label} is {shapes['qweight']} words with scales {shapes['scales']}, neither GPTQ nor AWQ (gemm): export "
            "the float model that it was made from."
        )
    bits, added = _of_gptq(shapes, stored, label)
    groups = shapes["scales"][0]
    size = -(-(rows * _WORD // bits) // groups)

    def read(names: Parts, tensors: Tensors) -> Any:
        return _gptq(names, tensors, bits, added, size)

    return Packed(f"{owner}.weight", f"INT{bits} of GPTQ", parts, read)


def _of_gptq(shapes: Mapping[str, Sequence[int]], stored: Checkpoint, label: str) -> tuple[int, int]:
    """Bits, and what is added to zero points as they are stored: 1 in the first version of the format."""
    said = [one.detail for one in stored.declared if one.method in ("gptq", "gptqmodel")]
    if not said:
        raise ModelError(
            f"{label} is packed as GPTQ does, and nothing says in which version of the format (quantize_config.json or "
            "config.json), so its zero points are not certain: fetch the whole folder again."
        )
    bits = _WORD * shapes["qzeros"][1] // shapes["scales"][1]
    declared = said[0].get("bits") or bits
    if str(declared) != str(bits) or bits not in (2, 3, 4, 8):
        raise ModelError(f"{label} has zero points of {bits} bits, and the folder says {declared}: fetch it again.")
    form = str(said[0].get("checkpoint_format") or "gptq").lower()
    if form not in ("gptq", "gptq_v2"):
        raise ModelError(
            f"{label} is packed as '{form}', and only 'gptq' and 'gptq_v2' are read: export the float model."
        )
    return bits, int(form == "gptq")


def unpacked(words: Any, bits: int) -> Any:
    """Numbers out of 32-bit words along the last axis, lowest bits first; 3 bits may reach into the next word.

    Args:
        words: int32 [..., n].
        bits: of a number.

    Returns:
        int64 [..., n * 32 / bits].
    """
    import torch

    if _WORD % bits == 0:
        shifts = torch.arange(0, _WORD, bits)
        return ((words.long().unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)
    single = ((words.long().unsqueeze(-1) >> torch.arange(_WORD)) & 1).flatten(-2)
    return (single.unflatten(-1, (-1, bits)) << torch.arange(bits)).sum(dim=-1)


def _gptq(names: Parts, tensors: Tensors, bits: int, added: int, size: int) -> Any:
    import torch

    numbers = unpacked(tensors[names["qweight"]].T.contiguous(), bits)  # [out, in]
    zeros = (unpacked(tensors[names["qzeros"]], bits) + added) & ((1 << bits) - 1)  # [groups, out]
    scales = tensors[names["scales"]].to(torch.float32)
    order = tensors[names["g_idx"]].long() if "g_idx" in names else torch.arange(numbers.shape[1]) // size
    if order.min() < 0:
        raise ValueError(f"g_idx has {int(order.min())}")
    made = (numbers - zeros[order].T).to(torch.float32) * scales[order].T
    return made.contiguous()


def _awq(names: Parts, tensors: Tensors) -> Any:
    import torch

    def columns(words: Any) -> Any:
        numbers = unpacked(words, 4).unflatten(-1, (-1, 8))
        return numbers[..., [AWQ_ORDER.index(at) for at in range(8)]].flatten(-2)

    numbers, zeros = columns(tensors[names["qweight"]]), columns(tensors[names["qzeros"]])  # [in, out], [groups, out]
    scales = tensors[names["scales"]].to(torch.float32)
    size = numbers.shape[0] // scales.shape[0]
    made = (numbers - zeros.repeat_interleave(size, 0)).to(torch.float32) * scales.repeat_interleave(size, 0)
    return made.T.contiguous()


def _fp4(name: str, stored: Checkpoint) -> Iterator[Packed]:
    """FP4 with a scale for 16 or 32 values, two values to a byte."""
    tensors = stored.tensors
    base = re.sub(r"_packed$", "", name)
    scale, second, whole = f"{base}_scale", f"{base}_scale_2", f"{base}_global_scale"
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in tensors:
        parts = {"values": name, "scale": f"{name.removesuffix('_blocks')}_scales"}
        yield Packed(name.removesuffix("_blocks"), "MXFP4", parts, _mxfp4_experts)
    elif scale in tensors and tensors[scale].dtype == "F8_E4M3" and (second in tensors or whole in tensors):
        parts = {"values": name, "scale": scale, "second": second if second in tensors else whole}
        divided = second not in tensors
        yield Packed(base, "NVFP4", parts, lambda names, held: _nvfp4(names, held, divided))
    elif base != name and scale in tensors and tensors[scale].dtype == "U8":
        yield Packed(base, "MXFP4", {"values": name, "scale": scale}, _mxfp4)


def _levels(bytes_: Any) -> Any:
    """FP4 values of bytes along the last axis, the low half of each byte first."""
    import torch

    codes = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-1).flatten(-2)
    return torch.tensor(E2M1)[codes.long()]


def _nvfp4(names: Parts, tensors: Tensors, divided: bool) -> Any:
    import torch

    values, whole = _levels(tensors[names["values"]]), tensors[names["second"]].to(torch.float32).reshape(())
    scale = tensors[names["scale"]].to(torch.float32)
    scale = scale / whole if divided else scale * whole
    return values * scale.repeat_interleave(16, -1)


def _mxfp4(names: Parts, tensors: Tensors) -> Any:
    import torch

    values = _levels(tensors[names["values"]])
    scale = torch.exp2(tensors[names["scale"]].to(torch.float32) - 127)
    return values * scale.repeat_interleave(32, -1)


def _mxfp4_experts(names: Parts, tensors: Tensors) -> Any:
    """Of GPT-OSS: [experts, outputs, blocks, 16] bytes, which its class has as [experts, inputs, outputs]."""
    import torch

    values = _levels(tensors[names["values"]])
    scale = torch.exp2(tensors[names["scale"]].to(torch.float32) - 127)
    return (values * scale.unsqueeze(-1)).flatten(-2).transpose(-2, -1).contiguous()


def _bitsandbytes(name: str, stored: Checkpoint) -> Packed:
    """NF4 and FP4: codes of a table of 16 values, the high half of each byte first, with a largest value per block."""
    start = f"{name}."
    own = {one.removeprefix(start): one for one in stored.tensors if one.startswith(start)}
    state = next((one for one in own if one.startswith("quant_state.bitsandbytes__")), "")
    if not state or "quant_map" not in own:
        raise ModelError(
            f"'{name}' in '{stored.folder}' is in blocks of bitsandbytes without its table of values or its state "
            f"({', '.join(sorted(own))}): fetch the folder again."
        )
    kind = state.rpartition("__")[2].upper()
    return Packed(name, f"{kind} of bitsandbytes", {"values": name, **own, "state": own[state]}, _of_blocks)


def _of_blocks(names: Parts, tensors: Tensors) -> Any:
    import torch

    said: dict[str, Any] = json.loads(bytes(tensors[names["state"]].tolist()))
    most = tensors[names["absmax"]]
    if "nested_absmax" in names:
        outer = tensors[names["nested_absmax"]].to(torch.float32)
        table = tensors[names["nested_quant_map"]].to(torch.float32)
        each = outer.repeat_interleave(int(said["nested_blocksize"]))[: most.numel()]
        most = table[most.long().flatten()] * each + float(said.get("nested_offset") or 0.0)
    packed_bytes = tensors[names["values"]].flatten()
    codes = torch.stack((packed_bytes >> 4, packed_bytes & 15), dim=-1).flatten().long()
    values = tensors[names["quant_map"]].to(torch.float32)[codes]
    scale = most.to(torch.float32).flatten().repeat_interleave(int(said["blocksize"]))[: values.numel()]
    shape = [int(size) for size in said["shape"]]
    count = torch.Size(shape).numel()
    return (values[:count] * scale[:count]).reshape(shape)
