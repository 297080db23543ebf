"""Reading `.npz` archives row by row, so that a calibration set larger than memory can be one file.

A member stored without compression is mapped where it lies in the archive. A compressed one is decompressed as the
rows are asked for. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from qcompiler.errors import DataError

Array = np.ndarray[Any, Any]

_LOCAL_HEADER = 30  # bytes before the name in a zip local file header
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """One array of an archive.

    Attributes:
        archive: the `.npz`.
        entry: its name inside, with `.npy`.
        dtype: of the elements.
        shape: of the whole array.
        fortran: stored in Fortran order.
        start: first byte of the elements in the uncompressed entry.
        mapped: first byte of the elements in the archive itself; None where the entry is compressed.
    """

    archive: Path
    entry: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int
    mapped: int | None

    def rows(self, step: int) -> Iterator[Array]:
        """Yields `self[i : i + step]` for i = 0, step, 2 * step, ...; needs at least one axis.

        Raises:
            DataError: the archive is damaged.
        """
        if self.mapped is not None or self.fortran:
            whole = self.whole()
            yield from (whole[at : at + step] for at in range(0, self.shape[0], step))
            return
        with _reading(self.archive) as archive, archive.open(self.entry) as stream:
            stream.read(self.start)
            for at in range(0, self.shape[0], step):
                shape = (min(step, self.shape[0] - at), *self.shape[1:])
                yield self._read(stream, shape)

    def whole(self) -> Array:
        """The array: a view of the archive where it is not compressed."""
        order = "F" if self.fortran else "C"
        if self.mapped is not None and 0 not in self.shape:
            mapped = np.memmap(self.archive, self.dtype, "r", self.mapped, self.shape, order=order)  # type: ignore[call-overload]
            return np.asarray(mapped)
        with _reading(self.archive) as archive, archive.open(self.entry) as stream:
            stream.read(self.start)
            flat = self._read(stream, self.shape)
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat

    def _read(self, stream: IO[bytes], shape: tuple[int, ...]) -> Array:
        array = np.empty(shape, self.dtype)
        wanted = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
        try:
            got = _read_into(stream, wanted)
        except _BROKEN as error:
            raise _damaged(self.archive, str(error)) from error
        if got < len(wanted):
            raise _damaged(self.archive, f"array '{self.entry}' ends too early")
        return array


def members(path: Path) -> dict[str, Member]:
    """The arrays of an archive by name, in the archive's order; only headers are read.

    Raises:
        DataError: not a readable `.npz`, or an array in it needs unpickling.
    """
    found: dict[str, Member] = {}
    with _reading(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                found[info.filename.removesuffix(".npy")] = _member(path, archive, info, file)
    return found


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: IO[bytes]) -> Member:
    try:
        with archive.open(info) as stream:
            version = npy.read_magic(stream)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(stream)
            start = stream.tell()
    except _BROKEN as error:
        raise _damaged(path, f"array '{info.filename}': {error}") from error
    if dtype.hasobject:
        raise DataError(
            f"array '{info.filename.removesuffix('.npy')}' of '{path}' holds pickled Python objects, which are never "
            "loaded because a pickle can run any code. Save it again with a plain dtype such as np.float32; arrays "
            "of different shapes belong into one .npz file each, in a folder."
        )
    mapped = None
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:30])
        mapped = info.header_offset + _LOCAL_HEADER + name + extra + start
        if mapped + int(np.prod(shape)) * dtype.itemsize > path.stat().st_size:
            raise _damaged(path, f"array '{info.filename}' ends too early")
    return Member(path, info.filename, dtype, shape, fortran, start, mapped)


def _reading(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _BROKEN as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"'{path}' cannot be read as .npz ({why}). Write it again with np.savez('{path.name}', name=array)."
    )


def _read_into(stream: IO[bytes], wanted: memoryview) -> int:
    got = 0
    while got < len(wanted):
        piece = stream.read(min(1 << 20, len(wanted) - got))
        if not piece:
            return got
        wanted[got : got + len(piece)] = piece
        got += len(piece)
    return got
