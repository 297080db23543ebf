"""Model: a graph with its weights mapped from the file it came from; load, save, copy, and the proto for a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto
from onnx_graphsurgeon.ir.tensor import SparseValues

from qcompiler.errors import ModelError, UsageError
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.made import Held, Made, let_go, solid
from qcompiler.ir.operators import FINITE, VIEWS
from qcompiler.ir.to_proto import graph_to_proto
from qcompiler.ir.weights import Array, Weights, map_file, pieces, stored_bytes, to_external_tensor
from qcompiler.ir.wire import WireError, delimited, strip
from qcompiler.support.atomic import Artefacts, unwritable
from qcompiler.support.memory import PIECE, release

OLDEST_OPSET = 7
_DEFAULTS = 4  # the IR version from which on an initializer that is an input is a default value, and not just a weight
_ALIGNMENT = 4096  # of tensors in an external data file: a page, so that each can be mapped by itself
_PROTOBUF_LIMIT = (1 << 31) - 1
_LOOKS_LIKE = (
    (0, b"version https://git-lfs", "it is a Git LFS pointer: run 'git lfs pull'"),
    (0, b"PK\x03\x04", "it is a zip archive, perhaps a PyTorch checkpoint: export it to ONNX first"),
    (4, b"ORTM", "it is in ONNX Runtime's own format: use the .onnx file that it was made from"),
    (4, b"TFL3", "it is a TensorFlow Lite model: convert it to ONNX first"),
)


_EXPONENT = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}  # all of it set: NaN or infinite


@dataclass
class Model:
    """A graph and what belongs to it.

    Attributes:
        graph: nodes in order and uniquely named; weights are read-only arrays, mapped where they are large. Not every
            mapped array is aligned to its element size.
        metadata: the model's metadata_props.
        source: the file it was loaded from, None for a model made in memory.
        ir_version: of the source; `save` raises it where the opset demands more.
        files: all files that weights are mapped from. They must stay as they are while the model is in use.
        defaults: initializers that a caller may replace, as they are inputs as well; none where the exporter made
            inputs of all initializers, which means nothing.
        ends: the element types that the source has for inputs and outputs which are float32 here, by name.
        mended: constants that are infinite or 0 in the 16 bits of the source, and were read as the number of that type
            which is next to what they were rounded from.
    """

    graph: gs.Graph
    metadata: dict[str, str]
    source: Path | None
    ir_version: int
    files: tuple[Path, ...] = ()
    defaults: tuple[str, ...] = ()
    ends: Mapping[str, np.dtype[Any]] = field(default_factory=dict)
    mended: tuple[str, ...] = ()

    def content(self) -> object:
        """What it computes, wherever its weights come from: the graph as bytes, the weights by name, metadata."""
        proto, weights = to_proto(self.graph)
        ends = {name: dtype.name for name, dtype in self.ends.items()}
        return proto.SerializeToString(deterministic=True), weights, self.metadata, self.ir_version, ends


def skeleton(path: str | Path) -> ModelProto | None:
    """An ONNX file without its weights, which are not read; None for what is not an ONNX file."""
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        return None
    proto = ModelProto()
    try:
        proto.ParseFromString(strip(map_file(path).data))
    except (WireError, DecodeError):
        return None
    return proto


def load(path: str | Path, *, oldest: int = OLDEST_OPSET) -> Model:
    """Reads an ONNX file without copying its weights and without touching it.

    Args:
        path: of the file.
        oldest: opset that the reader knows what to do with.

    Raises:
        ModelError: no such file, not an ONNX model, or a malformed one; the message names file, node and tensor.
    """
    path = Path(path)
    weights = Weights(path, _content(path))
    proto = _parse(path, weights)
    _check(path, proto, oldest)
    graph = graph_from_proto(proto, weights)
    metadata = {entry.key: entry.value for entry in proto.metadata_props if isinstance(entry.value, str)}
    return Model(graph, metadata, path, proto.ir_version, tuple(weights.files), _defaults(proto))


def _defaults(proto: ModelProto) -> tuple[str, ...]:
    weights = [one.name for one in proto.graph.initializer]
    weights += [one.values.name for one in proto.graph.sparse_initializer]
    inputs = {one.name for one in proto.graph.input}
    found = tuple(name for name in weights if name in inputs)
    return found if proto.ir_version >= _DEFAULTS and len(found) < len(weights) else ()


def copy(model: Model) -> Model:
    """A model with a graph of its own; the weight arrays are shared, so nobody may write into them."""
    return replace(model, graph=model.graph.copy(), metadata=dict(model.metadata))


def forget_pages(model: Model) -> None:
    """Lets go of the memory that mapped weights take since they were last read; they are read again when needed."""
    for node in model.graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray | Made):
                let_go(tensor._values)


def to_proto(graph: gs.Graph) -> tuple[ModelProto, dict[str, Held]]:
    """The graph as a ModelProto, and by name the weights that are not inside it.

    Initializers of the main graph of 1 KiB or more are marked EXTERNAL with a location that does not exist; they are
    the arrays returned, contiguous, not copied, in the order of the initializers. Weights of subgraphs, strings and
    small ones of packed types (INT4, up to 1 MiB of elements) are inside. The same graph gives the same bytes.

    Raises:
        InternalError: two different tensors of the graph have the same name.
    """
    return graph_to_proto(graph)


def save(model: Model, path: Path, *, external_above: int = 1 << 30, shard: int | None = None) -> list[Path]:
    """Writes the model to `path`, and its weights to `<stem>.data` beside it when they exceed `external_above` bytes.

    With `shard`, they are cut into `<stem>-00001-of-00003.data` and so on, of at most so many bytes each, also where
    they exceed only that; a weight that is larger has a file of its own. Weights are streamed: nothing is built in
    memory but the graph without them. Each file appears under its name when it is complete and not before; the same
    model gives the same bytes.

    Returns:
        The files written, the model first.

    Raises:
        UsageError: the folder cannot be written to, the disk is full, or `path` is a file that the model came from.
    """
    path = Path(path)
    proto, arrays = to_proto(model.graph)
    proto.ir_version = max(proto.ir_version, model.ir_version)
    for key, value in model.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    total = sum(map(stored_bytes, arrays.values()))
    most = min(external_above, shard or external_above, _PROTOBUF_LIMIT - proto.ByteSize() - 64 * len(arrays))
    parts = _parts(proto, arrays, shard) if total > most else []
    targets = [path, *_data_files(path, len(parts))]
    _refuse_sources(model, targets)
    with Artefacts() as files:
        for target, part in zip(targets[1:], parts, strict=True):
            with _writing(files, target) as data:
                _write_external(part, arrays, data, target.name)
        with _writing(files, path) as stream:
            if parts:
                stream.write(proto.SerializeToString(deterministic=True))
            else:
                _write_embedded(proto, arrays, stream)
    return targets


def check_finite(model: Model) -> None:
    """Reads all float weights once, 4 MiB at a time, and refuses those that would poison every range behind them.

    A NaN is refused in any constant with more than one element, an infinity only in what a layer multiplies or
    normalizes with (also behind Transpose, Reshape, Cast and the like): attention masks are full of -inf by design.

    Raises:
        ModelError: names the weight, the layer, and how many of its values are not finite.
    """
    sound: set[tuple[int, bool]] = set()
    for graph in _graphs(model.graph):
        for node in graph.nodes:
            for tensor in (*node.inputs, *node.attrs.values()):
                if isinstance(tensor, gs.Constant) and not isinstance(tensor._values, SparseValues):
                    strict = any(user.op in FINITE for user in _readers(node))
                    _check_constant(tensor, node, strict, sound)


def _check_constant(tensor: gs.Constant, node: gs.Node, strict: bool, sound: set[tuple[int, bool]]) -> None:
    held = tensor._values
    if (id(held), strict) in sound:
        return
    values = tensor.values
    if not values.dtype.name.startswith(("float", "bfloat")) or (values.size < 2 and not strict):
        return
    bad = _not_finite(values, np.isnan if not strict else _not_isfinite)
    if bad:
        kind = "NaN or infinite" if strict else "NaN"
        raise ModelError(
            f"weight '{tensor.name or node.name}' of node '{node.name}' ({node.op}) has {bad} of {values.size} values "
            f"that are {kind}: no range can be found behind it. Export the model from a checkpoint that is finite."
        )
    sound.add((id(held), strict))


def _not_isfinite(values: Array) -> Array:
    return np.logical_not(np.isfinite(values))


def _not_finite(values: Array, bad: Callable[[Array], Array]) -> int:
    flat = values.reshape(-1)
    step = PIECE // values.dtype.itemsize
    count = 0
    for at in range(0, flat.size, step):
        part = flat[at : at + step]
        if not _all_finite(part):
            count += int(np.count_nonzero(bad(part)))
        release(part)
    return count


def _all_finite(part: Array) -> bool:
    """Whether it is known that no value is NaN or infinite; for 16 bits by their exponents, which is much faster."""
    mask = _EXPONENT.get(part.dtype.name)
    return mask is not None and not bool(((part.view(np.uint16) & mask) == mask).any())


def _graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    yield graph
    for node in graph.nodes:
        for inner in node.subgraphs():
            yield from _graphs(inner)


def _readers(node: gs.Node) -> Iterator[gs.Node]:
    """The node, and what reads it through nodes that only move or rename values."""
    yield node
    if node.op in (*VIEWS, "Constant"):
        for output in node.outputs:
            for user in output.outputs:
                yield from _readers(user)


def _content(path: Path) -> Array:
    if not path.exists():
        raise ModelError(f"there is no file '{path}'; check the spelling of the path.")
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder, not an ONNX file; name the .onnx file in it.")
    if not path.is_file():
        raise ModelError(f"'{path}' is not a regular file; copy the model into one.")
    try:
        content = map_file(path)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if not len(content):
        raise ModelError(f"'{path}' is empty; fetch or export the model again.")
    return content


def _parse(path: Path, weights: Weights) -> ModelProto:
    content = map_file(path)
    for offset, magic, advice in _LOOKS_LIKE:
        if content[offset : offset + len(magic)].tobytes() == magic:
            raise ModelError(f"'{path}' is not an ONNX model; {advice}.")
    proto = ModelProto()
    try:
        proto.ParseFromString(strip(content.data))
    except (WireError, DecodeError) as error:
        raise ModelError(
            f"'{path}' is not a readable ONNX model ({error}): it is cut short, damaged or of another format. "
            "Fetch or export it again."
        ) from error
    return proto


def _check(path: Path, proto: ModelProto, oldest: int) -> None:
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"'{path}' holds no graph with outputs: it is not an ONNX model, or it computes nothing.")
    opset = max((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    only_custom = not opset and proto.opset_import
    if not only_custom and opset < oldest:
        raise ModelError(
            f"'{path}' uses opset {opset or 'none at all'}; the oldest that is read is {oldest}. "
            f"Export the model again with a newer opset, or raise it with onnx.version_converter."
        )
    if opset > newest or proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"'{path}' uses opset {opset} and IR version {proto.ir_version}; the installed onnx {onnx.__version__} "
            f"knows {newest} and {onnx.IR_VERSION}. Install a newer onnx, or export the model with an older opset."
        )


def _refuse_sources(model: Model, targets: Sequence[Path]) -> None:
    sources = [source for source in (model.source, *model.files) if source is not None and source.exists()]
    for target in targets:
        if target.exists() and any(target.samefile(source) for source in sources):
            raise UsageError(
                f"'{target}' is a file that the model was read from, and inputs are never overwritten; "
                "write to another name or folder."
            )


@contextmanager
def _writing(files: Artefacts, target: Path) -> Iterator[IO[bytes]]:
    """A stream for the draft of `target`, whose failures are the user's to mend."""
    draft = files.stage(target)
    try:
        with draft.open("wb") as stream:
            yield stream
    except OSError as error:
        raise unwritable(target, error) from error


def _write_embedded(proto: ModelProto, arrays: dict[str, Held], stream: IO[bytes]) -> None:
    """One file: the fields of a message may come in any order, so the large weights are appended to the graph."""
    large = [tensor for tensor in proto.graph.initializer if tensor.name in arrays]
    graph = _without_large(proto, arrays)
    heads: list[bytes] = []
    for tensor in large:
        values = arrays[tensor.name]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        heads.append(tensor.SerializeToString(deterministic=True) + delimited(9, stored_bytes(values)))
    fronts = [
        delimited(5, len(head) + stored_bytes(arrays[tensor.name])) + head
        for head, tensor in zip(heads, large, strict=True)
    ]
    size = len(graph) + sum(map(len, fronts)) + sum(stored_bytes(arrays[tensor.name]) for tensor in large)
    stream.write(proto.SerializeToString(deterministic=True))
    stream.write(delimited(7, size))
    stream.write(graph)
    for front, tensor in zip(fronts, large, strict=True):
        stream.write(front)
        stream.writelines(pieces(solid(arrays[tensor.name])))


def _without_large(proto: ModelProto, arrays: dict[str, Held]) -> bytes:
    """Takes the graph out of `proto` and returns it serialized without the weights in `arrays`."""
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)
    proto.ClearField("graph")
    small = [tensor for tensor in graph.initializer if tensor.name not in arrays]
    del graph.initializer[:]
    graph.initializer.extend(small)
    return bytes(graph.SerializeToString(deterministic=True))


def _parts(proto: ModelProto, arrays: dict[str, Held], most: int | None) -> list[list[onnx.TensorProto]]:
    """The large initializers in their order, in groups of at most `most` bytes; one at least in each."""
    found: list[list[onnx.TensorProto]] = []
    size = 0
    for tensor in proto.graph.initializer:
        if tensor.name not in arrays:
            continue
        room = -(-stored_bytes(arrays[tensor.name]) // _ALIGNMENT) * _ALIGNMENT
        if not found or (most is not None and size + room > most):
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += room
    return found


def _data_files(path: Path, count: int) -> list[Path]:
    if count < 2:
        return [path.with_suffix(".data")] * count
    return [path.with_name(f"{path.stem}-{at:05}-of-{count:05}.data") for at in range(1, count + 1)]


def _write_external(tensors: list[onnx.TensorProto], arrays: dict[str, Held], data: IO[bytes], location: str) -> None:
    """Writes large weights to `data`, each on a page of its own, and notes in the tensors where they are."""
    for tensor in tensors:
        values = solid(arrays[tensor.name])
        offset = -(-data.tell() // _ALIGNMENT) * _ALIGNMENT
        data.write(bytes(offset - data.tell()))
        data.writelines(pieces(values))
        tensor.CopyFrom(to_external_tensor(tensor.name, values, location, offset))
