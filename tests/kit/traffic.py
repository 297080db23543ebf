"""Kernels and memory traffic of a TensorRT-RTX plan, read from its own listing: no GPU needed, static shapes only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompiler.engines.audit import NOT_KERNELS
from qcompiler.engines.listing import Op, Tensor, read

SIZES = {
    "half": 2.0, "bf16": 2.0, "float": 4.0, "int8": 1.0, "uint8": 1.0, "fp8_e4m3": 1.0, "fp8_e8m0": 1.0, "int4": 0.5,
    "fp4_e2m1": 0.5, "bool": 1.0, "int32": 4.0, "int64": 8.0,
}  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """What one inference moves.

    Attributes:
        kernels: launches.
        bytes: read and written by all kernels; what two kernels share is counted in both.
        nodes: bytes of the kernels that work for each ONNX node, by name; a kernel of several nodes is divided evenly.
        unknown: kernels with a tensor whose size is known only at run time, whose bytes are missing.
    """

    kernels: int
    bytes: float
    nodes: Mapping[str, float]
    unknown: int


def traffic(plan: str | Path) -> Traffic:
    """Reads a plan file built for one optimization profile.

    Raises:
        OSError: the file cannot be read.
    """
    ops = [op for one in read(plan) if not one.body for op in one.ops if op.kind not in NOT_KERNELS]
    nodes: Counter[str] = Counter()
    total, unknown = 0.0, 0
    for op in ops:
        known = list(_tensors(op).values())
        unknown += any(size is None for one in known for size in one.dims)
        moved = sum(_size(one) for one in known)
        total += moved
        for name in op.layers:
            nodes[name] += moved / len(op.layers)  # type: ignore[assignment]
    return Traffic(len(ops), total, dict(nodes), unknown)


def _tensors(op: Op) -> dict[str, Tensor]:
    """Each tensor once, however often an op reads it."""
    return {one.name: one for one in (*op.inputs, *op.outputs) if one is not None}


def _size(tensor: Tensor) -> float:
    sizes = [size for size in tensor.dims if size is not None]
    return math.prod(sizes) * SIZES.get(tensor.type, 4.0) if len(sizes) == len(tensor.dims) else 0.0
