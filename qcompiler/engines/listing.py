r"""Reads the plain text listing that TensorRT-RTX leaves in its plan files.

A plan holds, for each optimization profile, an uncompressed text that ends at a NUL byte:

    header { ... accelerators={sm89 sm120 } }
    descriptors { tensor={ ... dims={ 64 96 } ... name="y" ... type=half } ... }
    main { fully_connected={ name="mm" output={"y" } input={"x" "w" ... } alpha=384424A2 ...
                             layers="[ONNX Layer: mm]\x1f[ONNX Layer: x_dq]" } ... }      (one line an op)

One text serves all compute capabilities of the plan. A `runtime_fusion` has its body in a text of its own, with the
accelerators `*`. The format is undocumented; this reader was written against version 1.7.1. What it does not find it
does not invent: a plan without a readable text gives an empty list.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_START = b"header {\n"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TENSOR = re.compile(rf"^\s*(?:sub_)?tensor=\{{.*?(?<!\w)name=({_QUOTED})")
_TYPE = re.compile(r" type=(\w+) ?\}\s*$")
# Possessive: a text that is cut off must not be tried in all ways to part it
_DIMS = re.compile(rf" dims=\{{((?:\s*+(?:{_QUOTED}|[^\s\"}}]++))*+)\s*\}}")
_OP = re.compile(rf"^\s*(\w+)=\{{ name=({_QUOTED}|\S+)")
_NAMES = rf"=\{{((?:\s*{_QUOTED})*)\s*\}}"
_INPUT = re.compile(rf"(?<!\w)input(?:_args)?{_NAMES}")
_OUTPUT = re.compile(rf"(?<!\w)output(?:_args)?{_NAMES}")
_LAYERS = re.compile(rf"(?<!\w)layers=({_QUOTED})")
_ALPHA = re.compile(r"(?<!\w)alpha=([0-9A-F]{1,8})(?!\w)")
_LAYER = "[ONNX Layer: "
_MADE = re.compile(r"(?<=\])__\w+$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a listing.

    Attributes:
        name: its name inside the plan.
        type: `half`, `float`, `bf16`, `int8`, `fp8_e4m3`, `int4`, `int64` ...
        dims: sizes; None where a size is known only at run time.
        constant: whether the plan holds its values.
    """

    name: str
    type: str
    dims: tuple[int | None, ...]
    constant: bool


@dataclass(frozen=True)
class Op:
    """A kernel launch of a listing.

    Attributes:
        kind: `fully_connected` (matrix product), `corrltn` (convolution), `deconvolution`, `function` (generated
            kernel), `runtime_fusion` (product with its own prologue and epilogue), `shape_call` ...
        name: its name inside the plan; products keep the names of their ONNX nodes, joined by `+`.
        inputs: tensors in operand order; None where the listing does not describe the tensor.
        outputs: the same for what it writes.
        layers: names of the ONNX nodes that it computes, as `NAME` or, in a branch, `NAME | BODY | OUTER (If)`.
        alpha: the factor applied to a product's accumulator; None where there is none.
    """

    kind: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    layers: tuple[str, ...]
    alpha: float | None

    @property
    def input_types(self) -> tuple[str, ...]:
        """Types in operand order, `?` where unknown."""
        return tuple(one.type if one else "?" for one in self.inputs)

    @property
    def output_types(self) -> tuple[str, ...]:
        """Types of what it writes, `?` where unknown."""
        return tuple(one.type if one else "?" for one in self.outputs)

    @cached_property
    def nodes(self) -> frozenset[str]:
        """Every ONNX node name that `layers` can mean (a name may itself contain the separator of branches)."""
        return frozenset(name for layer in self.layers for name in _prefixes(layer))


@dataclass(frozen=True)
class Listing:
    """One listing.

    Attributes:
        sms: compute capabilities it serves; empty for the body of a runtime fusion.
        tensors: by name.
        ops: in execution order.
    """

    sms: tuple[str, ...]
    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]

    @property
    def body(self) -> bool:
        """Whether this is the inside of a `runtime_fusion` of another listing."""
        return not self.sms


def read(plan: str | Path) -> list[Listing]:
    """The listings of a plan file, in file order; empty if there are none that can be read.

    Only the texts are copied into memory, never the weights.

    Raises:
        OSError: the file cannot be read.
    """
    with open(plan, "rb") as file:
        if not Path(plan).stat().st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return [parse(text) for text in _texts(content)]


def _texts(content: mmap.mmap) -> Iterator[str]:
    start = content.find(_START)
    while start >= 0:
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        text = content[start:end].decode("utf-8", errors="replace")
        if "\ndescriptors {" in text and "\nmain {" in text and "accelerators={" in text:
            yield text
        start = content.find(_START, end)


def parse(text: str) -> Listing:
    """Reads one listing from its text."""
    found = re.search(r"(?<!\w)accelerators=\{(.*?)\}", text)
    sms = tuple(sm for sm in (found.group(1).split() if found else ()) if sm != "*")
    tensors = {tensor.name: tensor for tensor in _tensors(_section(text, "descriptors"))}
    return Listing(sms, tensors, tuple(_ops(_section(text, "main"), tensors)))


def _section(text: str, name: str) -> str:
    """One section; its lines end at newlines only (`splitlines` would also split at the separator of layers)."""
    start = text.find(f"\n{name} {{")
    end = text.find("\n}", start)
    return text[start:end] if start >= 0 else ""


def _tensors(section: str) -> Iterator[Tensor]:
    for line in section.split("\n"):
        name = _TENSOR.match(line)
        if name is None:
            continue
        kind, dims = _TYPE.search(line), _DIMS.search(line)
        yield Tensor(
            name.group(1)[1:-1],
            kind.group(1) if kind else "?",
            tuple(int(size) if size.isdigit() else None for size in _sizes(dims.group(1) if dims else "")),
            "const_payload_size=" in line,
        )


def _sizes(text: str) -> list[str]:
    return re.findall(rf"{_QUOTED}|\S+", text)


def _ops(section: str, tensors: dict[str, Tensor]) -> Iterator[Op]:
    for line in section.split("\n"):
        head = _OP.match(line)
        if head is None:
            continue
        layers, alpha = _LAYERS.search(line), _ALPHA.search(line)
        yield Op(
            head.group(1),
            head.group(2).strip('"'),
            tuple(tensors.get(name) for name in _names(_INPUT, line)),
            tuple(tensors.get(name) for name in _names(_OUTPUT, line)),
            tuple(_layer(one) for one in layers.group(1)[1:-1].split("\x1f") if one) if layers else (),
            struct.unpack(">f", bytes.fromhex(alpha.group(1).zfill(8)))[0] if alpha else None,
        )


def _names(pattern: re.Pattern[str], line: str) -> list[str]:
    found = pattern.search(line)
    return [name[1:-1] for name in re.findall(_QUOTED, found.group(1))] if found else []


def _layer(text: str) -> str:
    """The name in `[ONNX Layer: NAME]`, also where the compiler puts what it made of it behind: `]__gemm_from_conv`."""
    return re.sub(r"\\(.)", r"\1", _MADE.sub("", text.removeprefix(_LAYER)).removesuffix("]"))


def _prefixes(layer: str) -> Iterator[str]:
    parts = layer.split(" | ")
    return (" | ".join(parts[:count]) for count in range(1, len(parts) + 1))
