"""What an engine takes by its own listing: kernels, bytes, multiply-accumulates by type, and their time at best.

A TensorRT-RTX plan lists every kernel launch with the tensors it reads and writes, and the ONNX nodes it works for (see
`listing`). So what one inference moves is known without a GPU, wherever all sizes are known: build for one shape. The
listing does not say how much is multiplied; that comes from outside, by node.

A kernel that gathers reads as much of its table as it writes. What two kernels share is moved twice: caches are not
modelled. Products inside generated kernels, such as those of a single row, run on the ordinary cores, at the FP32 rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qcompiler.engines.audit import NOT_KERNELS, Book, later_profile
from qcompiler.engines.listing import Op, Tensor, read
from qcompiler.engines.rates import Gpu, Kernel
from qcompiler.target import DType

_SIZES: Final = {
    "half": 2.0, "bf16": 2.0, "float": 4.0, "int8": 1.0, "uint8": 1.0, "fp8_e4m3": 1.0, "fp8_e8m0": 1.0, "int4": 0.5,
    "fp4_e2m1": 0.5, "bool": 1.0, "int32": 4.0, "int64": 8.0,
}  # fmt: skip
_FLOATS: Final = {"half": DType.FP16, "bf16": DType.BF16, "float": DType.FP32}
_LOW: Final = {"int8": DType.INT8, "fp8": DType.FP8, "fp4": DType.FP8, "int4": DType.INT4}  # FP4 has no rates yet
_JUMPS: Final = frozenset({"jmp", "cjmp"})


@dataclass(frozen=True, slots=True)
class PricedLaunch:
    """One kernel launch.

    Attributes:
        name: its name inside the plan.
        nodes: names of the ONNX nodes that it works for, as the listing has them.
        kernel: what it multiplies and moves.
        unsized: it has a tensor whose size is known only at run time, and whose bytes are missing.
    """

    name: str
    nodes: tuple[str, ...]
    kernel: Kernel
    unsized: bool


@dataclass(frozen=True)
class Roofline:
    """One inference with an engine, in the first of its optimization profiles.

    Attributes:
        launches: in the order of the listing; empty where it cannot be read.
        unlisted: multiply-accumulates of nodes that no kernel names: folded away, or inside another's kernel.
        jumps: there are branches or loops: what is skipped is counted, and what is repeated is counted once.
    """

    launches: tuple[PricedLaunch, ...]
    unlisted: int = 0
    jumps: bool = False

    @property
    def bytes(self) -> float:
        """Read and written by all kernels; what two kernels share is counted in both."""
        return sum(one.kernel.bytes for one in self.launches)

    @property
    def unsized(self) -> int:
        """How many kernels have bytes that are missing."""
        return sum(one.unsized for one in self.launches)

    @property
    def nodes(self) -> dict[str, float]:
        """Bytes of the kernels that work for each ONNX node; those of a kernel of several are divided evenly."""
        found: dict[str, float] = {}
        for one in self.launches:
            for node in one.nodes:
                found[node] = found.get(node, 0.0) + one.kernel.bytes / len(one.nodes)
        return found

    @property
    def macs(self) -> dict[DType, int]:
        """Multiply-accumulates by the type of their operands."""
        found: Counter[DType] = Counter()
        for one in self.launches:
            found[one.kernel.dtype] += one.kernel.macs
        return {dtype: count for dtype, count in sorted(found.items()) if count}

    def seconds(self, gpu: Gpu) -> float:
        """The time of all kernels, one after the other, at the rates of a GPU; inf where it lacks a type."""
        return sum(one.kernel.seconds(gpu) for one in self.launches)


def roofline(plan: str | Path, macs: Mapping[str, int] | None = None) -> Roofline:
    """Reads a plan file.

    Args:
        plan: built by TensorRT-RTX, best for one shape of each input.
        macs: multiply-accumulates by name of the ONNX node, at that shape.

    Raises:
        OSError: the file cannot be read.
    """
    listings, work = read(plan), macs or {}
    first = [one for one in listings if not one.body and not later_profile(one)]
    book = Book([one for one in listings if one.body or one in first], frozenset(work))
    ops = [op for one in first for op in one.ops]
    done: Counter[int] = Counter()
    types: dict[int, DType] = {}
    unlisted = 0
    for node, count in work.items():
        products = book.products(node)
        shared = products or book.ops(node)[:1]
        unlisted += 0 if shared else count
        for op in shared:
            done[id(op)] += count // len(shared)
            types.setdefault(id(op), _type(op, book.kind(node, op)) if products else DType.FP32)
    launches = (_launch(op, done[id(op)], types.get(id(op), DType.FP32)) for op in ops if op.kind not in NOT_KERNELS)
    return Roofline(tuple(launches), unlisted, any(op.kind in _JUMPS for op in ops))


def _type(op: Op, kind: str) -> DType:
    """What a product computes in: its quantized type, or that of its first float operand."""
    if kind in _LOW:
        return _LOW[kind]
    return next((_FLOATS[one] for one in op.input_types if one in _FLOATS), DType.FP32)


def _launch(op: Op, macs: int, dtype: DType) -> PricedLaunch:
    read = {one.name: one for one in op.inputs if one is not None}
    written = {one.name: one for one in op.outputs if one is not None}
    known = {**read, **written}  # each once, however often an op reads it
    sizes = {name: _size(one) for name, one in known.items()}
    if "Gath" in op.name:
        out = max((_elements(one) for one in written.values()), default=0)
        table = max(read.values(), key=_elements, default=None)
        if table is not None and _elements(table) > out:
            sizes[table.name] = out * _SIZES.get(table.type, 4.0)
    unsized = any(size is None for one in known.values() for size in one.dims)
    return PricedLaunch(op.name, op.layers, Kernel(macs, dtype, sum(sizes.values())), unsized)


def _elements(tensor: Tensor) -> int:
    """How many elements it has; 0 where that is not known."""
    sizes = [size for size in tensor.dims if size is not None]
    return math.prod(sizes) if len(sizes) == len(tensor.dims) else 0


def _size(tensor: Tensor) -> float:
    return _elements(tensor) * _SIZES.get(tensor.type, 4.0)
