"""Weights as arrays: views of the mapped model file and of its external files, and TensorProto back from arrays.

External data is read only from the folder of the model. A Hugging Face cache keeps the model and its data as links
into one `blobs` folder; that, and data that lies beside the real path of the model, counts as the same folder.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.helper import np_dtype_to_tensor_dtype, tensor_dtype_to_np_dtype

from qcompiler.errors import ModelError
from qcompiler.ir.wire import EMBEDDED
from qcompiler.support.memory import PIECE, noted, release

Array = np.ndarray[Any, Any]

_PACKED_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (
        ("UINT4", 4),
        ("INT4", 4),
        ("FLOAT4E2M1", 4),
        ("UINT2", 2),
        ("INT2", 2),
        ("FLOAT6E2M3", 6),
        ("FLOAT6E3M2", 6),
    )
    if hasattr(TensorProto, name)
}


def element_type(data_type: int, where: str) -> np.dtype[Any]:
    """The numpy type of an ONNX element type (`ml_dtypes` where numpy has none; `object` for strings).

    Raises:
        ModelError: `data_type` is undefined or unknown to the installed onnx; `where` says whose it is.
    """
    try:
        return np.dtype(tensor_dtype_to_np_dtype(data_type))
    except KeyError:
        raise ModelError(
            f"{where} has element type {data_type}, which ONNX {onnx.__version__} does not define; "
            "the file is damaged or written for a newer ONNX: export the model again."
        ) from None


def is_packed(dtype: np.dtype[Any]) -> bool:
    """Whether several elements share a byte in a file (INT4 and the like); arrays hold one element a byte."""
    return dtype.kind != "O" and np_dtype_to_tensor_dtype(dtype) in _PACKED_BITS


class WeightForm(Protocol):
    """What there is to know of weights without looking at them."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an element."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all."""

    @property
    def nbytes(self) -> int:
        """Of all elements."""


class Weights:
    """Reads the tensors of one model file.

    Attributes:
        files: the files that arrays are views of, the model first. They must not be changed while the model is in use.
    """

    def __init__(self, model: Path, content: Array) -> None:
        """`content` is the mapped model file, uint8."""
        self.model = model
        self.files: list[Path] = [model]
        self._mapped: dict[str, Array] = {EMBEDDED: content}

    def read(self, tensor: TensorProto, where: str) -> Array:
        """The values of `tensor`, read-only; large ones are views of the file and need not be aligned.

        Raises:
            ModelError: the element type, size or external file is wrong; the message begins with `where`.
        """
        dtype = element_type(tensor.data_type, where)
        shape = tuple(tensor.dims)
        if any(dim < 0 for dim in shape):
            raise ModelError(f"{where} has the impossible shape {list(shape)}; export the model again.")
        if tensor.data_location == TensorProto.EXTERNAL:
            array = _decode(self._external(tensor, where), tensor.data_type, dtype, shape, where)
        elif dtype.kind == "O":
            array = _strings(tensor, shape, where)
        elif tensor.HasField("raw_data"):
            array = _decode(np.frombuffer(tensor.raw_data, np.uint8), tensor.data_type, dtype, shape, where)
        else:
            array = _typed(tensor, where)
        array.flags.writeable = False
        return array

    def _external(self, tensor: TensorProto, where: str) -> Array:
        entries = {entry.key: entry.value for entry in tensor.external_data if isinstance(entry.value, str)}
        location = entries.get("location", "")
        content = self._map(location, where)
        offset = _integer(entries.get("offset", "0"), "offset", where)
        rest = max(len(content) - offset, 0)
        length = _integer(entries.get("length", str(rest)), "length", where)
        needed = _size(tensor.data_type, tuple(tensor.dims), where)
        if "length" not in entries and "offset" in entries:
            length = min(needed, rest)
        if length > rest:
            raise ModelError(
                f"{where} needs bytes {offset} to {offset + length} of '{self._name(location)}', which has only "
                f"{len(content)}: the file is cut short. Fetch it again, or export the model again."
            )
        return content[offset : offset + length]

    def _name(self, location: str) -> str:
        return str(self.model) if location == EMBEDDED else location

    def _map(self, location: str, where: str) -> Array:
        if location not in self._mapped:
            path = self._resolve(location, where)
            self._mapped[location] = map_file(path)
            self.files.append(path)
        return self._mapped[location]

    def _resolve(self, location: str, where: str) -> Path:
        """The real path of an external file.

        Raises:
            ModelError: it lies outside the folder of the model, does not exist or is not a file.
        """
        pure = PurePosixPath(location)
        if not location or "\0" in location:
            raise ModelError(f"{where} is external but names no file; export the model again.")
        absolute = pure.is_absolute() or PureWindowsPath(location).is_absolute()
        path = self.model.parent / location
        real, home = path.resolve(), self.model.resolve()
        if absolute or ".." in pure.parts or not _belongs(real, self.model.parent.resolve(), home):
            raise ModelError(
                f"{where} wants its data from '{location}', which lies outside the folder of the model; only files "
                f"in '{self.model.parent}' are read. Put the data file beside the model and save the model with the "
                "plain file name."
            )
        try:
            mode = real.stat().st_mode
        except OSError as error:
            raise ModelError(
                f"{where} has its data in '{location}', which cannot be read from '{self.model.parent}' "
                f"({error.strerror}). Put the data file beside the model."
            ) from error
        if not stat.S_ISREG(mode):
            raise ModelError(f"{where} has its data in '{location}', which is not a regular file.")
        return real


class HeldWeights(Weights):
    """The tensors of a proto whose large ones somebody holds as arrays, by the name of the tensor."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(Path("in memory"), np.zeros(0, np.uint8))
        self.files = []
        self._arrays = arrays

    def read(self, tensor: TensorProto, where: str) -> Array:
        """The array of an external tensor; the values of any other."""
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._arrays[tensor.name]
        return super().read(tensor, where)


def map_file(path: Path) -> Array:
    """The content of `path` as a read-only uint8 array backed by the file (an empty one for an empty file)."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    return np.asarray(noted(np.memmap(path, np.uint8, "r")))


def to_tensor(name: str, values: Array) -> TensorProto:
    """A TensorProto with the values inside, strings and packed types included."""
    values = np.asarray(values)
    if values.dtype.kind in "OUS":
        tensor = TensorProto(name=name, data_type=TensorProto.STRING, dims=values.shape)
        tensor.string_data.extend(
            item if isinstance(item, bytes) else str(item).encode() for item in values.reshape(-1).tolist()
        )
        return tensor
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)


def to_external_tensor(name: str, values: WeightForm, location: str, offset: int | None = None) -> TensorProto:
    """A TensorProto without values that says where they are: `location`, `offset` and their length in bytes."""
    tensor = TensorProto(name=name, data_type=np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": stored_bytes(values)}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def stored_bytes(values: WeightForm) -> int:
    """Bytes of weights in a file: several elements of a packed type share one."""
    if not is_packed(values.dtype):
        return values.nbytes
    return _size(np_dtype_to_tensor_dtype(values.dtype), values.shape, "")


def pieces(values: Array) -> Iterator[memoryview]:
    """The bytes of `values` as a file has them, in C order, 4 MiB at a time, without a copy where they already lie so.

    Pages of a mapped file are given back behind each piece, so that passing over a model does not make it resident.
    """
    if is_packed(values.dtype):
        yield memoryview(numpy_helper.from_array(np.ascontiguousarray(values)).raw_data)
        return
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    for at in range(0, flat.size, PIECE):
        piece = flat[at : at + PIECE]
        yield piece.data
        release(piece)


def _belongs(real: Path, folder: Path, model: Path) -> bool:
    if real.is_relative_to(folder) or real.parent == model.parent:
        return True
    caches = [parent for parent in model.parents if parent.name.startswith("models--")]
    return bool(caches) and real.is_relative_to(caches[0])


def _integer(text: str, key: str, where: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise ModelError(f"{where} gives '{text}' as the {key} of its external data; export the model again.")


def _size(data_type: int, shape: tuple[int, ...], where: str) -> int:
    count = prod(shape)
    if data_type in _PACKED_BITS:
        return -(-count * _PACKED_BITS[data_type] // 8)
    return count * element_type(data_type, where).itemsize


def _decode(content: Array, data_type: int, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    if dtype.kind == "O":
        raise ModelError(f"{where} holds strings as raw bytes, which ONNX does not allow; export the model again.")
    needed = _size(data_type, shape, where)
    if len(content) != needed:
        raise ModelError(
            f"{where} has {len(content)} bytes where its shape {list(shape)} and type {dtype} need {needed}; "
            "the file is damaged: fetch or export it again."
        )
    if data_type in _PACKED_BITS:
        return numpy_helper.to_array(TensorProto(data_type=data_type, dims=shape, raw_data=content.tobytes()))
    return content.view(dtype).reshape(shape)


def _strings(tensor: TensorProto, shape: tuple[int, ...], where: str) -> Array:
    if len(tensor.string_data) != prod(shape):
        raise ModelError(f"{where} has {len(tensor.string_data)} strings where its shape {list(shape)} needs others.")
    array = np.empty(len(tensor.string_data), object)
    array[:] = [_text(item) for item in tensor.string_data]
    return array.reshape(shape)


def _text(item: bytes) -> str | bytes:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


def _typed(tensor: TensorProto, where: str) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{where} does not have as many values as its shape {list(tensor.dims)} needs ({error}); "
            "the file is damaged: fetch or export it again."
        ) from error
