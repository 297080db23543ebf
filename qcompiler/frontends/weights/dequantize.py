"""Checkpoints whose weights are quantized already: float32 of them where the format is certain, else a refusal.

The tensors themselves decide. Read are weights in float8 (E4M3, E5M2) and INT8 with scales per tensor, channel, group
or block of two dimensions beside them, as compressed-tensors, modelopt, DeepSeek's and FBGEMM's FP8 have them; INT4 and
INT8 that compressed-tensors packed into 32-bit words; INT8 of bitsandbytes; and the formats of `few_bits`. Each is
(value - zero point) * scale in float32, with the scales of the file. Everything else is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.weights import few_bits
from qcompiler.frontends.weights.checkpoint import FLOAT, INTEGER, Checkpoint
from qcompiler.frontends.weights.reserve import Origin, computed

FROM_FLOAT = "export the float model that they were made from, or let the library that made them write float weights"
_KNOWN = (
    "compressed-tensors",
    "modelopt",
    "fp8",
    "fbgemm_fp8",
    "bitsandbytes",
    "mxfp4",
    "gptqmodel",
    *few_bits.FORMATS,
)
"""Methods whose float8 and INT8 tensors are read, and whose float tensors are the weights themselves."""
_LAYOUTS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "dense",
            "nvfp4-pack-quantized", "mxfp4-pack-quantized")  # fmt: skip
"""Of compressed-tensors, those that are read."""
_FOREIGN = {
    r"\.(qweight|qzeros)$": "words of a format that is neither GPTQ's nor AWQ's",
    r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.": "4-bit blocks of bitsandbytes",
    r"(_|\.)(weight_scale_2|weight_global_scale)$": "4-bit blocks with scales of two levels (NVFP4)",
    r"_blocks$": "4-bit blocks (MXFP4)",
    r"\.(codes|codebooks)$": "codes of a codebook (AQLM)",
    r":(qdata|scale)$": "tensors of torchao",
    r"\._(data|scale)$": "tensors of quanto",
    r"\.W_q$": "weights of HQQ",
    r"(\.|_)(bitmask|compressed)$": "sparse tensors of compressed-tensors",
}
"""Names that only a format has which is not read."""
_SCALES = ("_scale", "_scale_inv")  # both are multiplied with, whatever the second one is called
_BESIDE = (*_SCALES, "_zero_point", "_g_idx", "_shape", "_shape_original")
_EIGHT_BITS = {
    "I8": "INT8",
    "F8_E4M3": "float8 (E4M3)",
    "F8_E5M2": "float8 (E5M2)",
    "F8_E4M3FNUZ": "float8 (E4M3FNUZ)",
    "F8_E5M2FNUZ": "float8 (E5M2FNUZ)",
}
"""Types of one value to a byte, and what they are called; an unsigned byte may be two values of 4 bits."""
_USUAL_BLOCK = 128
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Dequantized:
    """The weights of a checkpoint as a class of transformers can take them.

    Attributes:
        tensors: where they are, by name; what was quantized is made in float32 when it is read, a layer at a time,
            without the scales that it took; the rest is as stored.
        layers: the weights that were dequantized, and how each was stored.
        used: the scales, zero points and shapes that went into them.
        method: whose format it is, in words.
    """

    tensors: Mapping[str, Origin]
    layers: Mapping[str, str]
    used: tuple[str, ...]
    method: str

    def note(self) -> str:
        """One sentence for the user."""
        if not self.layers:
            return f"the folder says its weights are quantized ({self.method}), and all are float: taken as they are"
        kinds = sorted(set(self.layers.values()))
        return (
            f"{len(self.layers)} weights of the checkpoint are {' and '.join(kinds)} ({self.method}): dequantized to "
            f"float32 with their {len(self.used)} scales, zero points and shapes, which is exact. Activations are float"
        )


@dataclass(frozen=True)
class _Weight:
    """A quantized weight to read: the name that the class knows, that of its values, and what lies beside them."""

    name: str
    values: str
    packed: bool
    beside: Mapping[str, str]


def weights(stored: Checkpoint) -> Dequantized | None:
    """The weights of a checkpoint in float; None where nothing is quantized and nothing says so.

    Raises:
        ModelError: something is quantized in a way that is not read; the message has the format and the tensors.
    """
    if not stored.declared and all(one.dtype in FLOAT for one in stored.tensors.values()):
        return None
    packed = list(few_bits.packed(stored))
    rest = _without(stored, {part for one in packed for part in one.parts.values()})
    _refuse_foreign(rest)
    _refuse_declared(stored, bool(packed))
    quantized = list(_quantized(rest))
    if not quantized and not packed and not stored.declared:
        return None  # integers without scales are buffers; the class will tell
    origins, read, blocks = stored.origins(), _Stored(stored), _blocks(stored)
    used: list[str] = []
    layers: dict[str, str] = {}
    for one in packed:
        layers[one.name] = one.kind
        for name in one.parts.values():
            origins.pop(name, None)
        used += [name for name in one.parts.values() if name != one.name]
        origins[one.name] = computed(partial(few_bits.made, one, read, stored))
    for weight in quantized:
        layers[weight.name] = _kind(weight, stored)
        used += weight.beside.values()
        for name in (weight.values, *weight.beside.values()):
            origins.pop(name, None)
        origins[weight.name] = computed(partial(_dequantized, weight, read, blocks, stored))
    used += _multiply_inputs(origins)
    methods = sorted({one.method for one in stored.declared}) or ["described nowhere"]
    return Dequantized(origins, layers, tuple(sorted(used)), ", ".join(methods))


class _Stored(Mapping[str, Any]):
    """The tensors of a checkpoint by name, each read when it is asked for and kept by nobody."""

    def __init__(self, stored: Checkpoint) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Any:
        return self._stored.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored.tensors)

    def __len__(self) -> int:
        return len(self._stored.tensors)


def _without(stored: Checkpoint, names: set[str]) -> Checkpoint:
    return replace(stored, tensors={name: one for name, one in stored.tensors.items() if name not in names})


def _multiply_inputs(origins: dict[str, Origin]) -> list[str]:
    """Puts scales that a layer multiplies its inputs with (modelopt's AWQ and SmoothQuant) into the layer's weight."""
    found = [name for name in origins if name.endswith(".pre_quant_scale")]
    for name in found:
        weight, scale = f"{name.rpartition('.')[0]}.weight", origins.pop(name)
        if weight not in origins or origins[weight].shape[-1] != math.prod(scale.shape):
            raise ModelError(f"'{name}' multiplies the inputs of a layer whose weight it does not fit: {FROM_FLOAT}.")
        origins[weight] = computed(partial(_multiplied, origins[weight], scale))
    return found


def _multiplied(weight: Origin, scale: Origin) -> Any:
    import torch

    return weight.read().to(torch.float32) * scale.read().to(torch.float32).reshape(-1)


def _quantized(stored: Checkpoint) -> Iterator[_Weight]:
    """Weights that are quantized: packed, or in 8 bits with a scale beside them.

    Raises:
        ModelError: one is in few bits and has no scale, or is of a type that is not read.
    """
    tensors, bare = stored.tensors, []
    for name, one in tensors.items():
        base = name.removesuffix("_packed")
        beside, few = _beside(base, tensors), one.dtype not in FLOAT | INTEGER
        scaled = any(suffix in beside for suffix in (*_SCALES, "SCB"))
        if scaled and (one.dtype == "I32" if base != name else one.dtype in _EIGHT_BITS):
            yield _Weight(base, name, base != name, beside)
        elif scaled and one.dtype not in FLOAT:
            raise ModelError(
                f"the weights in '{stored.folder}' are quantized already ({_methods(stored, 'described nowhere')}): "
                f"'{name}' is {one.dtype} with '{next(iter(beside.values()))}' beside it, which may be several values "
                f"to a byte and is not read: {FROM_FLOAT}."
            )
        elif few and not name.endswith(_SCALES):
            bare.append(name)
    if bare:
        raise ModelError(
            f"{len(bare)} weights in '{stored.folder}' are {tensors[bare[0]].dtype} (float8 or smaller) without a "
            f"scale that is known ({some(bare)}; beside the first: {some(_siblings(bare[0], tensors)) or 'nothing'}), "
            f"so what they mean is not certain: {FROM_FLOAT}."
        )


def _beside(name: str, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that belong to a weight, by what they are."""
    found = {suffix: name + suffix for suffix in _BESIDE if name + suffix in tensors}
    owner, dot, last = name.rpartition(".")
    if last == "weight":
        found |= {key: owner + dot + key for key in ("SCB", "weight_format") if owner + dot + key in tensors}
    return found


def _siblings(name: str, tensors: Mapping[str, Any]) -> list[str]:
    owner = name.rpartition(".")[0]
    return [other for other in tensors if other != name and other.startswith(f"{owner}.")]


def _kind(weight: _Weight, stored: Checkpoint) -> str:
    if weight.packed:
        return "packed integers"
    return _EIGHT_BITS[stored.tensors[weight.values].dtype]


def _refuse_foreign(stored: Checkpoint) -> None:
    for pattern, words in _FOREIGN.items():
        found = [name for name in stored.tensors if re.search(pattern, name)]
        if found:
            raise ModelError(
                f"the weights in '{stored.folder}' are quantized already ({_methods(stored, words)}): they hold "
                f"{words}, which are not read, in {len(found)} tensors ({some(found)}): {FROM_FLOAT}."
            )


def _methods(stored: Checkpoint, otherwise: str) -> str:
    return ", ".join(f"{one.method}, in {one.file}" for one in stored.declared) or otherwise


def _refuse_declared(stored: Checkpoint, packed: bool) -> None:
    for one in stored.declared:
        lacks = one.method in few_bits.FORMATS and not packed
        reason = "none of its tensors is packed so" if lacks else _unreadable(one.method, one.detail)
        if reason:
            raise ModelError(
                f"the weights in '{stored.folder}' are quantized already ({one.method}), as {one.file} says: {reason}. "
                f"{FROM_FLOAT[0].upper()}{FROM_FLOAT[1:]}."
            )


def _unreadable(method: str, detail: Mapping[str, Any]) -> str:
    """Why a format that a folder describes is not read; empty where it is."""
    if method not in _KNOWN:
        return "this format is not read"
    layout = detail.get("format")
    if method == "compressed-tensors" and layout not in (None, *_LAYOUTS):
        return f"its layout '{layout}' is not read"
    if (detail.get("transform_config") or {}).get("config_groups"):
        return "it rotates tensors at run time (transform_config), which the class does not do"
    if (detail.get("sparsity_config") or {}).get("format") not in (None, "dense"):
        return "its weights are stored sparsely"
    return ""


def _blocks(stored: Checkpoint) -> list[tuple[int, int]]:
    """Sizes of blocks (rows, columns) that the folder says its scales have; a group is a block of one row."""
    found: set[tuple[int, int]] = set()
    for one in stored.declared:
        sizes = one.detail.get("weight_block_size")
        groups = one.detail.get("config_groups") or {}
        schemes = [(group or {}).get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else []
        for structure in (sizes, *(scheme.get("block_structure") for scheme in schemes)):
            if isinstance(structure, list) and len(structure) == 2:
                found.add((int(structure[0]), int(structure[1])))
        found |= {(1, int(size)) for size in (scheme.get("group_size") for scheme in schemes) if size and size > 0}
    return sorted(found)


def _dequantized(weight: _Weight, tensors: Mapping[str, Any], blocks: list[tuple[int, int]], stored: Checkpoint) -> Any:
    import torch

    scales = [weight.beside[suffix] for suffix in (*_SCALES, "SCB") if suffix in weight.beside]
    label = f"'{weight.name}' in '{stored.folder}'"
    if len(scales) > 1 or not tensors[scales[0]].is_floating_point():
        kinds = ", ".join(f"{name} ({stored.tensors[name].dtype})" for name in scales)
        raise ModelError(f"{label} has scales that are not known for its format ({kinds}): {FROM_FLOAT}.")
    scale, values = tensors[scales[0]].to(torch.float32), tensors[weight.values]
    zero = tensors[weight.beside["_zero_point"]] if "_zero_point" in weight.beside else None
    if weight.packed:
        values, zero = _unpacked(weight, values, zero, tensors, label)
    if "SCB" in weight.beside:
        scale = _of_bitsandbytes(weight, scale, tensors, label)
    groups = tensors[weight.beside["_g_idx"]] if "_g_idx" in weight.beside else None
    if groups is not None and bool((groups >= 0).all()):
        scale, zero = _in_order(scale, groups, label), None if zero is None else _in_order(zero, groups, label)
    shape = tuple(values.shape)
    made = values.to(torch.float32)
    if zero is not None:
        made = made - _spread(zero.to(torch.float32), shape, blocks, label)
    made = made * _spread(scale, shape, blocks, label)
    if "_shape_original" in weight.beside:  # blocks at the edges were filled up
        sizes = [int(size) for size in tensors[weight.beside["_shape_original"]]]
        made = made[tuple(slice(0, size) for size in sizes)]
    return made.contiguous()


def _of_bitsandbytes(weight: _Weight, scale: Any, tensors: Mapping[str, Any], label: str) -> Any:
    """The largest value of each row becomes the step of its 127 levels."""
    order = tensors[weight.beside["weight_format"]] if "weight_format" in weight.beside else None
    if order is not None and int(order.flatten()[0]) != 0:
        raise ModelError(f"{label} is stored by bitsandbytes in tiles of a GPU: {FROM_FLOAT}.")
    return scale / 127


def _in_order(scale: Any, groups: Any, label: str) -> Any:
    """The scale of each column, where columns of a group are not neighbours."""
    if scale.dim() != 2 or int(groups.max()) >= scale.shape[1]:
        raise ModelError(f"{label} has columns in groups (g_idx) that its scales do not have: fetch the folder again.")
    return scale[:, groups.long()]


def _unpacked(weight: _Weight, words: Any, zero: Any, tensors: Mapping[str, Any], label: str) -> tuple[Any, Any]:
    """Values and zero points out of 32-bit words: the first value in the lowest bits, stored without a sign."""
    sizes = [int(one) for one in tensors[weight.beside["_shape"]]] if "_shape" in weight.beside else []
    fitting = [
        bits for bits in (4, 8) if len(sizes) == words.dim() == 2 and words.shape[1] == -(-sizes[1] * bits // 32)
    ]
    if len(fitting) != 1 or words.shape[0] != sizes[0]:
        raise ModelError(
            f"{label} is packed as {tuple(words.shape)} 32-bit words for a weight of shape {tuple(sizes)}, which is "
            f"neither 4 nor 8 bits: {FROM_FLOAT}."
        )
    bits = fitting[0]
    values = _from_words(words, bits)[:, : sizes[1]]
    if zero is not None and str(zero.dtype) == "torch.int32":
        zero = _from_words(zero.T, bits).T[: sizes[0]]
    return values, zero


def _from_words(words: Any, bits: int) -> Any:
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return values.flatten(1) - (1 << (bits - 1))


def _spread(scale: Any, shape: Dims, blocks: list[tuple[int, int]], label: str) -> Any:
    """Scales in a shape that multiplies the values element by element."""
    if scale.numel() == 1:
        return scale.reshape(())
    sizes = tuple(scale.shape)
    if len(sizes) < len(shape) and sizes == shape[: len(sizes)]:  # one for each row, or each row of each expert
        return scale.reshape(*sizes, *(1 for _ in shape[len(sizes) :]))
    if len(sizes) != len(shape):
        raise _misfit(label, sizes, shape)
    for axis in range(len(shape)):
        if sizes[axis] not in (1, shape[axis]):
            step = _step(axis - len(shape), sizes, shape, blocks, label)
            scale = scale.repeat_interleave(step, axis).narrow(axis, 0, shape[axis])
    return scale


def _step(axis: int, sizes: Dims, shape: Dims, blocks: list[tuple[int, int]], label: str) -> int:
    """Elements to a scale along an axis: as the folder says, or as the sizes leave no choice."""
    size, scales = shape[axis], sizes[axis]
    if axis < -2:
        raise _misfit(label, sizes, shape)
    named = {one[axis] for one in blocks if _fit(one, sizes, shape)}
    possible = named or {
        step
        for step in (size // scales if size % scales == 0 else 0, _USUAL_BLOCK)
        if step and -(-size // step) == scales
    }
    if len(possible) != 1:
        raise _misfit(label, sizes, shape)
    return possible.pop()


def _fit(block: tuple[int, int], sizes: Dims, shape: Dims) -> bool:
    pairs = zip(block, sizes[-2:], shape[-2:], strict=True)
    return all(scales == -(-size // step) for step, scales, size in pairs)


def _misfit(label: str, sizes: Dims, shape: Dims) -> ModelError:
    return ModelError(
        f"{label} has scales of shape {sizes} for values of shape {shape}, and which scale belongs to which value is "
        f"not certain: name the sizes of blocks as weight_block_size in the quantization_config of config.json, or "
        f"{FROM_FLOAT}."
    )


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
