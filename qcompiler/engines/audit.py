"""The fusion audit: did the compiler do in low precision what the plan promised, and is what it did sound?

A Q/DQ graph is a request. TensorRT-RTX says nothing when it computes a node in float instead, when it stores raw
INT8 accumulators as half, or when it multiplies with scales of an impossible shape. The listing in the plan file shows
all three (see `listing`), without a GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx

from qcompiler.engines.listing import Listing, Op, read
from qcompiler.ir.operators import MULTIPLYING
from qcompiler.target import DType

PRODUCTS = frozenset({"fully_connected", "corrltn", "deconvolution"})
MOST_TYPES = 4  # operands of a kernel that are named
NOT_KERNELS = frozenset({"shape_call", "signal", "wait", "jmp", "cjmp", "label"})
LOW = {"int8": "int8", "fp8_e4m3": "fp8", "fp4_e2m1": "fp4", "int4": "int4"}
ACCEPTED = {
    DType.INT8: frozenset({"int8"}),
    DType.FP8: frozenset({"fp8"}),
    DType.INT4: frozenset({"int4", "woq-int4"}),
    DType.INT8_WEIGHT: frozenset({"woq-int8"}),
    DType.INT4_WEIGHT: frozenset({"woq-int4"}),
    DType.FP4_WEIGHT: frozenset({"woq-fp4"}),
}


# Kernels that join or rearrange tensors take constants of other shapes by right, such as padding or one more channel
_MOVES = re.compile(r"Conc|Gath|Slic|Scat|Resh|Tran|Pad")


class Kind(StrEnum):
    """What the audit can find wrong."""

    NOT_CONFIRMED = "not-confirmed"  # promised, but compiled to something else or not listed
    HALF_ACCUMULATOR = "half-accumulator"  # raw accumulators are stored as half, which ends at 65504
    BAD_BROADCAST = "bad-broadcast"  # scales of a shape that fits nothing in the kernel that applies them
    NO_LISTING = "no-listing"  # nothing could be checked


_DOUBTS = {
    Kind.NO_LISTING: "the engine has no listing that can be read, so none of {promised} promises is confirmed",
    Kind.NOT_CONFIRMED: "{count} of {promised} quantized nodes are not confirmed by the engine's listing: {nodes}",
    Kind.HALF_ACCUMULATOR: "the engine stores sums of {nodes} as half before they are scaled: they can overflow",
    Kind.BAD_BROADCAST: "the engine multiplies {nodes} with scales of a shape that does not fit: numbers are wrong",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `node` is the ONNX node's name, empty for the whole plan."""

    kind: Kind
    node: str
    text: str


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, and which nodes of the plan it computes.

    Attributes:
        what: its kind, the types that it reads and the types that it writes: `corrltn int8 int8 -> half`.
        nodes: places in the plan that was promised, ascending; mostly one, more where nodes were fused.
    """

    what: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """What an engine's own listing says of a plan's promises.

    Attributes:
        confirmed: promised nodes that are listed with the promised operand types, in promised order.
        mismatches: everything that is wrong; empty means that all promises were kept.
        compiled: for each MatMul, Gemm, Conv, ConvTranspose and Einsum of the model, and each promised node:
            `int8`, `fp8`, `fp4` (both operands), `woq-int8`, `woq-int4` ... (float product of a weight that is
            stored so), `float`, `generated` (inside a generated kernel, of floats), or `unlisted`.
        promised: how many nodes were promised.
        kernels: kernel launches of one inference.
        sms: compute capabilities in the plan.
        launches: the kernels of one inference that say what they compute, in order.
    """

    confirmed: tuple[str, ...]
    mismatches: tuple[Finding, ...]
    compiled: Mapping[str, str] = field(default_factory=dict)
    promised: int = 0
    kernels: int = 0
    sms: tuple[str, ...] = ()
    launches: tuple[Launch, ...] = ()

    @property
    def ok(self) -> bool:
        """Every promise is confirmed and nothing else was found."""
        return not self.mismatches

    @property
    def listed(self) -> tuple[str, ...] | None:
        """The nodes that are confirmed; None where there was no listing to look into."""
        return None if any(one.kind is Kind.NO_LISTING for one in self.mismatches) else self.confirmed

    def in_float(self) -> tuple[str, ...]:
        """The promised nodes that the listing shows in float: those that it does not list may be anything."""
        missed = (one.node for one in self.mismatches if one.kind is Kind.NOT_CONFIRMED)
        return tuple(node for node in missed if self.compiled[node] not in ("unlisted", *LOW.values()))

    def doubts(self) -> tuple[str, ...]:
        """Why a result should be doubted: a sentence for each kind of thing that is wrong; empty where nothing is."""
        found = []
        for kind, text in _DOUBTS.items():
            nodes = list(dict.fromkeys(one.node for one in self.mismatches if one.kind is kind))
            if nodes:
                named = ", ".join(f"'{node}'" for node in nodes[:3]) + ", ..." * (len(nodes) > 3)
                found.append(text.format(count=len(nodes), promised=self.promised, nodes=named))
        return tuple(found)

    def counts(self) -> dict[str, int]:
        """How many nodes compiled to what."""
        return dict(sorted(Counter(self.compiled.values()).items()))

    def share(self) -> float:
        """Confirmed nodes / promised nodes, 0..1; 1 if nothing was promised, 0 if nothing could be checked."""
        if self.listed is None:
            return 0.0
        return len(self.confirmed) / self.promised if self.promised else 1.0

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "promised": self.promised,
            "confirmed": len(self.confirmed),
            "share": self.share(),
            "ok": self.ok,
            "compiled": self.counts(),
            "nodes": dict(self.compiled),
            "kernels": self.kernels,
            "sms": list(self.sms),
            **self._launched(),
            "mismatches": [{**dataclasses.asdict(one), "kind": str(one.kind)} for one in self.mismatches],
        }

    def _launched(self) -> dict[str, Any]:
        """Each kind of kernel once, and each launch as numbers: which kind, then the places of its nodes."""
        kinds = {what: place for place, what in enumerate(dict.fromkeys(one.what for one in self.launches))}
        return {"kinds": list(kinds), "launches": [[kinds[one.what], *one.nodes] for one in self.launches]}


def audit(plan: str | Path, model: str | Path | onnx.ModelProto, promised: Mapping[str, DType]) -> Audit:
    """Holds the listing of a TensorRT-RTX plan against what was promised.

    Args:
        plan: the engine file.
        model: the ONNX model that it was built from. For a proto with external data, twins are told apart by where
            their data lies instead of by the data.
        promised: node name -> precision; entries of a precision that is not quantized are not looked at.
    """
    wanted = {node: precision for node, precision in promised.items() if precision.quantized}
    listings = read(plan)
    outer = [one for one in listings if not one.body]
    if not any(one.ops for one in outer):
        text = (
            f"'{plan}' has no listing that can be read (it was perhaps built by another version than TensorRT-RTX "
            f"1.7), so none of the {len(wanted)} promised nodes is confirmed"
        )
        return Audit((), (Finding(Kind.NO_LISTING, "", text),), promised=len(wanted))
    nodes = _Nodes(model)
    book = Book(listings, frozenset(nodes.linear))
    compiled = {name: book.compiled(name) for name in dict.fromkeys([*nodes.linear, *wanted])}
    for name, twin in nodes.twins([name for name, what in compiled.items() if what == "unlisted"]):
        if compiled[name] == "unlisted" and compiled.get(twin, "unlisted") != "unlisted":
            compiled[name] = compiled[twin]
    confirmed = tuple(node for node, precision in wanted.items() if compiled[node] in ACCEPTED[precision])
    kept = frozenset(confirmed)
    wrong = [
        Finding(Kind.NOT_CONFIRMED, node, f"promised {precision}, but {book.describe(node, compiled[node])}")
        for node, precision in wanted.items()
        if node not in kept
    ]
    wrong += dict.fromkeys(_hazards(outer, frozenset(nodes.linear)))
    return Audit(
        confirmed,
        tuple(wrong),
        compiled,
        promised=len(wanted),
        kernels=sum(op.kind not in NOT_KERNELS for one in outer if not later_profile(one) for op in one.ops),
        sms=tuple(dict.fromkeys(sm for one in outer for sm in one.sms)),
        launches=tuple(_launches(outer, {node: place for place, node in enumerate(promised)})),
    )


def _launches(listings: Iterable[Listing], places: Mapping[str, int]) -> Iterator[Launch]:
    """Of the first profile; what computes no node of the plan (padding, copies, nodes made for it) is left out."""
    for listing in listings:
        if later_profile(listing):
            continue
        for op in listing.ops:
            found = sorted(places[node] for node in op.nodes if node in places)
            if found and op.kind not in NOT_KERNELS:
                types = f"{' '.join(op.input_types[:MOST_TYPES])} -> {' '.join(op.output_types[:MOST_TYPES])}"
                yield Launch(f"{op.kind} {types}", tuple(found))


class Book:
    """Which ops compute which node, over all listings.

    Args:
        listings: of one engine file, with the bodies of its fusions.
        linear: names of the nodes that are products.
    """

    def __init__(self, listings: Iterable[Listing], linear: frozenset[str]) -> None:
        self._linear = linear
        self._ops: dict[str, list[Op]] = {}
        self._inside: dict[str, list[Op]] = {}
        for one in listings:
            for op in one.ops:
                for node in op.nodes:
                    (self._inside if one.body else self._ops).setdefault(node, []).append(op)

    def ops(self, node: str) -> list[Op]:
        """Every op that works for a node, outside of the bodies of fusions."""
        return self._ops.get(node, [])

    def compiled(self, node: str) -> str:
        """One word for what a node became; the weakest if its ops differ."""
        ops = self._ops.get(node, [])
        if node not in self._linear:
            low = [next((LOW[kind] for kind in op.input_types if kind in LOW), "float") for op in ops]
            return "unlisted" if not low else next((kind for kind in low if kind != "float"), "float")
        products = self.products(node)
        if not products:
            return next((_generated(op) for op in ops), "unlisted")
        kinds = [self.kind(node, op) for op in products]
        return next((kind for kind in kinds if kind not in LOW.values()), kinds[0])

    def describe(self, node: str, compiled: str) -> str:
        """Why it is not what was promised, with the op that shows it."""
        shown = self.products(node) or self._ops.get(node, [])
        if not shown:
            return "the engine does not list it at all: it was folded away or has another name there"
        op = next((one for one in shown if self.kind(node, one) not in LOW.values()), shown[0])
        return (
            f"compiled to {compiled}: {op.kind} '{op.name}' takes {', '.join(op.input_types[:3])} "
            f"and writes {', '.join(op.output_types)}"
        )

    def products(self, node: str) -> list[Op]:
        """Products (or fused attention) that compute a node; those with its name where some have it.

        A product also lists nodes whose work it only took over in part, so a name is the better witness.
        """
        ops = [op for op in self._ops.get(node, []) if op.kind in PRODUCTS | {"runtime_fusion"} or _attention(op)]
        return [op for op in ops if node in _own_names(op)] or ops

    def kind(self, node: str, op: Op) -> str:
        """What an op that `products` gave for a node computes in: see `Audit.compiled`."""
        if _attention(op):
            low = Counter(LOW[kind] for kind in op.input_types if kind in LOW)
            return next((kind for kind, count in low.items() if count >= 3), "float")
        if op.kind != "runtime_fusion":
            return _operands(op)
        bodies = [_operands(inner) for inner in self._inside.get(node, []) if inner.kind in PRODUCTS]
        if bodies and all(kind in LOW.values() for kind in bodies):
            return bodies[0]
        return _stored(op)


def _attention(op: Op) -> bool:
    return op.kind == "function" and "mha" in op.name


def _own_names(op: Op) -> set[str]:
    name = op.name.rpartition(" [profile ")[0] or op.name
    return {part.rpartition("^")[2] for part in name.split("+")} | {name}


def _operands(op: Op) -> str:
    left, right = (*op.input_types, "?", "?")[:2]
    if left == right and left in LOW:
        return LOW[left]
    return _stored(op)


def _stored(op: Op) -> str:
    """A float product: of a weight that is stored in low precision, or of floats."""
    low = [one for one in op.inputs if one is not None and one.type in LOW]
    return f"woq-{LOW[low[0].type]}" if low and all(one.constant for one in low) else "float"


def _generated(op: Op) -> str:
    """A product inside a generated kernel, as of a single row; it may read a weight that is stored in low precision."""
    low = [one for one in op.inputs if one is not None and one.type in LOW]
    return f"woq-{LOW[low[0].type]}" if low and all(one.constant for one in low) else "generated"


def later_profile(listing: Listing) -> bool:
    """Whether a listing is of another optimization profile than the first."""
    return any(" [profile " in op.name for op in listing.ops if op.kind in PRODUCTS)


def _hazards(listings: Iterable[Listing], linear: frozenset[str]) -> Iterator[Finding]:
    for one in listings:
        products = [op for op in one.ops if op.kind in PRODUCTS and _operands(op) in ("int8", "fp8", "fp4")]
        low = {node for op in products for node in op.nodes & linear}
        for op in products:
            if op.output_types[:1] == ("half",) and _scaled_later(op, one):
                text = (
                    f"'{op.name}' stores raw {_operands(op)} accumulators as half before they are scaled; they "
                    "overflow beyond 65504: use FP32 scales"
                )
                yield from (Finding(Kind.HALF_ACCUMULATOR, node, text) for node in sorted(op.nodes & linear))
        for op in one.ops:
            if op.kind == "function" and op.nodes & low and not _attention(op) and not _MOVES.search(op.name):
                yield from _misfits(op, sorted(op.nodes & low))


def _scaled_later(product: Op, listing: Listing) -> bool:
    """Whether what a product writes still waits for its scale.

    A matrix product has its scale in alpha. A convolution has alpha 1 and a vector of scales among its operands, so
    it is told from the kernel behind it, which then works for the convolution's node with a constant of its own.
    """
    if product.kind == "fully_connected":
        return product.alpha == 1.0
    written = {one.name for one in product.outputs if one is not None}
    own = product.nodes
    return any(
        op.kind == "function"
        and op.nodes & own
        and any(one is not None and one.name in written for one in op.inputs)
        and any(one is not None and one.constant and any(size != 1 for size in one.dims) for one in op.inputs)
        for op in listing.ops
    )


def _misfits(op: Op, nodes: list[str]) -> Iterator[Finding]:
    known = [one for one in (*op.inputs, *op.outputs) if one is not None]
    shapes = [one.dims for one in known if not one.constant and one.dims]
    for one in known:
        if one.constant and shapes and not any(_broadcasts(one.dims, shape) for shape in shapes):
            dims = "x".join(str(size) for size in one.dims)
            text = (
                f"the generated kernel '{op.name}' combines a constant of {dims} with tensors of "
                f"{', '.join(sorted({_spell(shape) for shape in shapes}))}, which cannot be broadcast: the numbers "
                "are wrong; use one scale per output channel instead of blocks"
            )
            yield from (Finding(Kind.BAD_BROADCAST, node, text) for node in nodes)


def _spell(dims: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in dims)


def _broadcasts(constant: tuple[int | None, ...], shape: tuple[int | None, ...]) -> bool:
    missing = len(constant) - len(shape)
    if missing > 0 and any(size != 1 for size in constant[:missing]):
        return False
    pairs = zip(reversed(constant), reversed(shape), strict=False)
    return all(mine in (1, None) or other is None or mine == other for mine, other in pairs)


class _Nodes:
    """The nodes of a model, also those in branches and loops."""

    def __init__(self, model: str | Path | onnx.ModelProto) -> None:
        self._folder: Path | None = None
        if not isinstance(model, onnx.ModelProto):
            self._folder = Path(model).parent
            model = onnx.load(os.fspath(model), load_external_data=False)
        self._graphs = list(_graphs(model.graph))
        self._nodes = [node for graph in self._graphs for node in graph.node]
        self._seen: dict[str, str] = {}
        self.linear = [node.name for node in self._nodes if node.name and node.op_type in MULTIPLYING]

    def twins(self, unlisted: list[str]) -> Iterator[tuple[str, str]]:
        """Pairs (unlisted node, other node) that compute the same of the same: the compiler keeps one of them."""
        if not unlisted:
            return
        constants = {one.name: one for graph in self._graphs for one in graph.initializer}
        producers = {output: node for node in self._nodes for output in node.output}
        by_name = {node.name: node for node in self._nodes}
        same: dict[str, list[str]] = {}
        wanted = {by_name[name].op_type for name in unlisted if name in by_name}
        for node in self._nodes:
            if node.op_type in wanted:
                same.setdefault(self._digest(node, producers, constants), []).append(node.name)
        for name in unlisted:
            if name in by_name:
                group = same[self._digest(by_name[name], producers, constants)]
                yield from ((name, other) for other in group if other != name)

    def _digest(
        self, node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
    ) -> str:
        """A hash of a node's operator, attributes and everything it is computed from, down to inputs and values."""
        stack = [node]
        while stack:
            one = stack[-1]
            sources = [producers[name] for name in one.input if name in producers]
            todo = [source for source in sources if source.output[0] not in self._seen]
            if todo:
                stack += todo
                continue
            stack.pop()
            digest = hashlib.sha256(f"{one.domain}:{one.op_type}".encode())
            for attribute in sorted(one.attribute, key=lambda a: a.name):
                digest.update(attribute.SerializeToString(deterministic=True))
            for name in one.input:
                digest.update(f"|{self._value(name, producers, constants)}".encode())
            for index, output in enumerate(one.output):
                self._seen[output] = f"{digest.hexdigest()}:{index}"
        return self._seen[node.output[0]]

    def _value(
        self, name: str, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
    ) -> str:
        if name in producers:
            return self._seen[name]
        if name not in constants:
            return f"input {name}"
        if name not in self._seen:
            self._seen[name] = hashlib.sha256(_content(constants[name], self._folder)).hexdigest()
        return self._seen[name]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _content(tensor: onnx.TensorProto, folder: Path | None) -> bytes:
    head = f"{tensor.data_type}{list(tensor.dims)}".encode()
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return head + (tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes())
    place = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        return head + repr(sorted(place.items())).encode()
    with open(folder / place["location"], "rb") as file:
        file.seek(int(place.get("offset", 0)))
        return head + (file.read(int(place["length"])) if "length" in place else file.read())
