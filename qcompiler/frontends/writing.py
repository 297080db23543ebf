"""A traced model with its weights into a file, one weight at a time, each in the type in which its origin has it.

A weight in FP16 or BF16 stays so, with a Cast to float32 in front of who reads it: that is exact, half of the bytes,
and gone where `compile` reads the file. Small ones are float32.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.frontends.weights.reserve import Reserve, WeightView, addresses
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.ir.names import Names
from qcompiler.ir.to_proto import SMALLEST_EXTERNAL
from qcompiler.ir.weights import Array, map_file, to_external_tensor
from qcompiler.support.memory import PIECE
from qcompiler.support.progress import ShownStage

EMBEDDED = 1 << 30
"""Bytes of weights up to which a model is one file."""
_HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_PAGE = 4096  # where each weight of a data file begins, so that it can be mapped by itself


@dataclass(frozen=True)
class _Weight:
    """A weight that is to be written.

    Attributes:
        constant: what stands for it in the graph: an array of its size and type without memory behind it.
        found: where its values are: a view of what is not in memory, or an array.
    """

    constant: gs.Constant
    found: WeightView | Array


def save(model: Model, path: Path, reserve: Reserve, shown: ShownStage) -> None:
    """Writes a model, whose graph is used up by it, to `path`, and its weights to `<stem>.data` if they exceed 1 GiB.

    Args:
        model: as it was traced and named.
        path: of the file, in a folder that is gone if anything fails.
        reserve: where weights are found that are not in memory.
        shown: advances by one for each weight.
    """
    weights = _stand_ins(model.graph, reserve)
    shown.total(len(weights))
    proto, arrays = models.to_proto(model.graph)
    proto.ir_version = max(proto.ir_version, model.ir_version)
    data = path.with_suffix(".data")
    places: dict[str, int] = {}
    with data.open("wb") as stream:
        for name in arrays:
            shown.note(_layer(name))
            places[name] = _pad(stream)
            _write(stream, arrays[name], weights[name].found, reserve)
            shown.advance()
    if sum(array.nbytes for array in arrays.values()) > EMBEDDED:
        for tensor in proto.graph.initializer:
            if tensor.name in places:
                tensor.CopyFrom(to_external_tensor(tensor.name, arrays[tensor.name], data.name, places[tensor.name]))
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return
    whole = map_file(data)
    for name, at in places.items():
        like = arrays[name]
        weights[name].constant.values = whole[at : at + like.nbytes].view(like.dtype).reshape(like.shape)
    models.save(model, path)
    data.unlink()


def width(dtype: Any) -> int:
    """Bytes of an element of a weight as it is written, by torch's type of it where it comes from."""
    return _HALVES[name].itemsize if (name := str(dtype).removeprefix("torch.")) in _HALVES else 4


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _pad(stream: IO[bytes]) -> int:
    """Goes on to the next page; where that is."""
    at = -(-stream.tell() // _PAGE) * _PAGE
    stream.write(bytes(at - stream.tell()))
    return at


def _stand_ins(graph: gs.Graph, reserve: Reserve) -> dict[str, _Weight]:
    """Puts arrays without memory into the places of all that is not small, by name; half precision gets its Cast."""
    names, made = Names(graph), dict[str, _Weight]()
    large = {
        id(one): one
        for inner in graphs.graphs(graph)
        for one in graphs.tensors(inner)
        if isinstance(one, gs.Constant) and one.values.nbytes >= SMALLEST_EXTERNAL
    }
    for tensor in large.values():
        found, dtype = _found(tensor.values, reserve)
        half = dtype != tensor.values.dtype
        tensor.values = _unwritten(tensor.values.shape, dtype)
        made[tensor.name] = _Weight(tensor, found)
        if half:
            _widen(graph, tensor, names)
    return made


def _found(values: Array, reserve: Reserve) -> tuple[WeightView | Array, np.dtype[Any]]:
    """Where values are, and the type in which they are written."""
    place = reserve.place(values.ctypes.data, values.shape, values.strides, values.itemsize)
    if place is None:
        return values, values.dtype
    name = str(place.origin.dtype).removeprefix("torch.")
    dtype: np.dtype[Any] = values.dtype
    return place, _HALVES.get(name, dtype)


def _unwritten(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that takes no memory as long as nobody writes to it, nor reads it."""
    count = math.prod(shape)
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(shape, dtype)
    return np.frombuffer(addresses(count * dtype.itemsize), dtype, count).reshape(shape)


def _widen(graph: gs.Graph, tensor: gs.Constant, names: Names) -> None:
    """Puts a Cast to float32 between a weight and whoever reads it."""
    readers = [node for node, _ in graphs.consumers(tensor)]
    own = {id(node) for node in graph.nodes}
    place = min(edit.index_of(graph, node) for node in readers) if all(id(one) in own for one in readers) else 0
    name = names.fresh(f"{tensor.name}/Cast")
    wide = gs.Variable(names.fresh(f"{name}:0"), np.float32, list(tensor.values.shape))
    edit.replace_uses(graph, tensor, wide)
    cast = gs.Node("Cast", name, {"to": int(onnx.TensorProto.FLOAT)}, [tensor], [wide])
    edit.insert_at(graph, place, [cast])


def _write(stream: IO[bytes], like: Array, found: WeightView | Array, reserve: Reserve) -> None:
    for piece in _bytes(like, found, reserve):
        stream.write(piece)


def _bytes(like: Array, found: WeightView | Array, reserve: Reserve) -> Iterator[memoryview]:
    """The values in C order, in the type of `like`."""
    if isinstance(found, WeightView):
        import torch

        values = reserve.values(found)
        kind = getattr(torch, like.dtype.name)
        flat = values.to(kind).contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        flat = np.ascontiguousarray(found).reshape(-1).view(np.uint8)
    for at in range(0, flat.size, PIECE):
        yield flat[at : at + PIECE].data
