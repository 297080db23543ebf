"""A value as bytes and back: arrays as blobs by their content, graphs as protos, open sources by their place.

Values are pickled, with four exceptions. An array of some size is named by its hash: weights that ten stages hand on
lie in the store once, and are mapped from there. A graph becomes its proto: node and tensor refer to each other too
deep for pickle. A source of samples and what results are judged by hold the user's code and open files; they are named
by their hash, and whoever reads gets those that this compilation has been given. So are models and observations that
the question held already: most stages hand on what they were given, and whoever reads has that.

What is read is made of the classes of this package, arrays and containers; nothing else is imported or called, so a
file that somebody else put there cannot run code.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from qcompiler.compiler.content import digest
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.data.deal import Parts
from qcompiler.data.source import Source
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.gs_classes import Graph
from qcompiler.ir.model import Model
from qcompiler.ir.to_proto import graph_to_proto
from qcompiler.ir.weights import HeldWeights
from qcompiler.statistics.observe import Observations
from qcompiler.verification.held_out import Judge

Array = np.ndarray[Any, Any]
Arrays = Callable[[str, np.dtype[Any], tuple[int, ...]], Array]
Live = Mapping[str, object]  # what is not written but named, by its hash

_SMALL = 1 << 12  # bytes of an array that stays inside
_LIVE = (Source, Judge)
_HELD = (Model, Observations)
_TYPES = ("numpy", "numpy.dtypes", "ml_dtypes", "pathlib", "pathlib._local")
_PLAIN = {  # what is made of values and does nothing else
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray", "range"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "qcompiler.data.samples": {"Fingerprint", "ShapeRange"},
    "qcompiler.data.spread": {"Spreads", "_Sums"},
    "qcompiler.ir.made": {"DequantizedWeights", "RoundedWeights", "ScaledWeights", "WidenedWeights"},
    "qcompiler.statistics.evidence": {"Flags"},
    "qcompiler.statistics.hessian": {"Hessians"},
    "qcompiler.statistics.histogram": {"Histogram", "Histograms"},
    "qcompiler.statistics.observe": {"_Statistics"},
    "qcompiler.statistics.outliers": {"AllOutliers", "Outliers"},
    "qcompiler.statistics.ranges": {"Ends"},
    "qcompiler.statistics.rows": {"Recorder"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
}


class NotKeptError(Exception):
    """Something in a value cannot be written, or cannot be had again."""


def pack(value: object, keep: Callable[[str, Array], None], held: Collection[str] = ()) -> bytes:
    """The value without its large arrays, which `keep` is handed with their names.

    Args:
        value: what stages hand back.
        keep: handed the arrays.
        held: hashes of models and observations that whoever reads it has.

    Raises:
        NotKeptError: something in it cannot be written; the message names its type.
    """
    stream = io.BytesIO()
    try:
        _Packer(stream, keep, held).dump(value)
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        raise NotKeptError(str(error)) from error
    return stream.getvalue()


def unpack(content: bytes, array: Arrays, live: Live) -> Any:
    """The value that `pack` wrote.

    Args:
        content: as `pack` returned it.
        array: an array by its name, dtype and shape.
        live: what stands for sources and judges, and for models and observations that were held.

    Raises:
        NotKeptError: an array is gone, a source is another one, or a class is not one of this package.
    """
    try:
        return _Unpacker(io.BytesIO(content), array, live).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, ValueError) as error:
        raise NotKeptError(str(error)) from error


def live_of(values: Iterable[object]) -> dict[str, object]:
    """The sources and judges among these values, and those that subjects among them hold, by their hash."""
    return {digest(one): one for value in values for one in _live(value)}


def _live(value: object) -> Iterator[object]:
    if isinstance(value, _LIVE):
        yield value
    elif isinstance(value, Parts):
        yield from (one for one in (value.calibrate, value.choose, value.judge) if one is not None)
    elif isinstance(value, Subject):
        yield value.judge
        for held in (value.samples, value.parts):
            yield from _live(held)


def held_of(values: Iterable[object]) -> dict[str, object]:
    """The models and observations among these values, and those that subjects, plans and graphs hold, by their hash."""
    return {digest(one): one for value in values for one in _held(value)}


def _held(value: object) -> Iterator[object]:
    if isinstance(value, _HELD):
        yield value
    elif isinstance(value, Subject):
        yield from (one for one in (value.reference, value.model, value.measured, value.seen) if one is not None)
    elif isinstance(value, Planned):
        yield value.model
    elif isinstance(value, Lowered):
        yield from (value.model, value.inner)


class _Packer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, keep: Callable[[str, Array], None], held: Collection[str]) -> None:
        super().__init__(stream, protocol=5)
        self._keep, self._held = keep, held

    def persistent_id(self, value: object) -> object:
        if isinstance(value, np.ndarray) and value.nbytes >= _SMALL and value.dtype.kind != "O":
            name = digest(value)
            self._keep(name, value)
            return "array", name, value.dtype, value.shape
        if isinstance(value, _LIVE):
            return "live", digest(value)
        if self._held and isinstance(value, _HELD) and (name := digest(value)) in self._held:
            return "live", name
        return None

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, MappingProxyType):
            return _frozen, (dict(value),)
        if isinstance(value, Graph):
            proto, weights = graph_to_proto(value)
            return _graph, (proto.SerializeToString(deterministic=True), weights, dict(value.fixed))
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, array: Arrays, live: Live) -> None:
        super().__init__(stream)
        self._array, self._live = array, live

    def persistent_load(self, pid: Any) -> object:
        kind, name, *form = pid
        if kind == "array":
            dtype, shape = form
            return self._array(name, dtype, shape)
        if name not in self._live:
            raise NotKeptError("the samples, or what results are judged by, are others")
        return self._live[name]

    def find_class(self, module: str, name: str) -> Any:
        found = _looked_up(module, name)
        if found is None:
            raise NotKeptError(f"'{module}.{name}' has no place there")
        return found


def _looked_up(module: str, name: str) -> Any:
    """What may be named in what is read; None for anything else."""
    if module == __name__ and name in _MADE:
        return globals()[name]
    room = module.split(".")[0]
    ours = room == "qcompiler" and "__" not in module  # importing some modules runs them
    if not ours and module not in _TYPES and module not in _PLAIN:
        return None
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if name in _PLAIN.get(module, ()):
        return found
    return found if isinstance(found, type) and _is_value(found, room) else None


def _is_value(kind: type, room: str) -> bool:
    """Whether making one of this class does nothing else."""
    if room == "qcompiler":
        return dataclasses.is_dataclass(kind) or issubclass(kind, Enum | tuple | list)
    return issubclass(kind, PurePath if room == "pathlib" else np.generic | np.dtype)


def _frozen(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A mapping that nobody writes to."""
    return MappingProxyType(values)


def _graph(content: bytes, weights: Mapping[str, Array], fixed: Mapping[str, Array]) -> Graph:
    """A graph of its proto, with the weights that lie beside it."""
    proto = onnx.ModelProto.FromString(content)
    graph = graph_from_proto(proto, HeldWeights(weights))
    if fixed:
        graph.fixed = MappingProxyType(dict(fixed))
    if graph_to_proto(graph)[0].SerializeToString(deterministic=True) != content:
        raise ValueError("a graph is another one when it is read")
    return graph


_MADE = frozenset({_frozen.__name__, _graph.__name__})
