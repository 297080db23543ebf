"""How much memory a compilation may take, and arrays put down on disk so that they do not stand in it.

A model is *tight* where compiling it as usual would take more than the limit. Then weights that are made on the way are
put down: written to a file that has no name any more, and mapped from there. The system takes such pages back as it
likes, and the file is gone with the last array that looks at it, however the process ends.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from qcompiler.errors import UsageError
from qcompiler.support.machine import available_memory

Array = np.ndarray[Any, Any]

COPIES: Final = 4  # of all weights, which a compilation holds: float, smoothed, rounded, those of a session
PIECES: Final = 8  # of the limit: what is run at a time takes one, with copies of its weights and what it computes
MARGIN: Final = 0.9  # of what is free, where nobody says how much may be taken
SMALLEST: Final = 1 << 20  # bytes of an array that is put down
PIECE: Final = 4 << 20  # bytes that are written together
_MOST_FILES: Final = 1 << 16
_EVERY: Final = 0.02  # seconds between two looks at how much of mapped files is in memory


@dataclass(frozen=True)
class Room:
    """What there is to work in.

    Attributes:
        limit: bytes of memory; None where nobody knows.
        folder: where arrays are put down.
        tight: weights are held piece by piece.
    """

    limit: int | None = None
    folder: Path | None = None
    tight: bool = False

    @property
    def piece(self) -> int | None:
        """Bytes of weights that are in memory together; None where all of them may be."""
        return self.limit // PIECES if self.tight and self.limit is not None else None


@dataclass
class _Compilation:
    """Whose room it is, and how much was read of weights since pages were given back."""

    room: Room
    read: int = 0


_running: ContextVar[_Compilation | None] = ContextVar("compilation", default=None)
_files: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # that arrays are mapped from
_guard = threading.Lock()


def room() -> Room:
    """That of the compilation that runs."""
    running = _running.get()
    return Room() if running is None else running.room


@contextmanager
def limited(limit: int | None, folder: Path) -> Iterator[None]:
    """Works in so much memory until the end of the block.

    Args:
        limit: bytes; None for what is free, less a margin.
        folder: where arrays are put down, on a disk with room for the weights.
    """
    if limit is None:
        free = available_memory()
        limit = None if free is None else int(free * MARGIN)
    with _working(_Compilation(Room(limit, folder))):
        yield


@contextmanager
def tight(limit: int | None, folder: Path) -> Iterator[None]:
    """Works as another process does whose compilation holds weights piece by piece; None where it does not."""
    if limit is None:
        yield
        return
    with _working(_Compilation(Room(limit, folder, tight=True))):
        yield


@contextmanager
def _working(running: _Compilation) -> Iterator[None]:
    done, token = threading.Event(), _running.set(running)
    threading.Thread(target=_give_back, args=(running, done), name="memory", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        _running.reset(token)


def weigh(weights: int) -> bool:
    """Says how many bytes the weights take in FP32; whether they are held piece by piece from now on."""
    running, now = _running.get(), room()
    if running is None or now.limit is None:
        return False
    running.room = replace(now, tight=weights * COPIES > now.limit)
    return running.room.tight


def put_down(array: Array) -> Array:
    """The array where there is room for it; else its values on disk, read-only.

    Raises:
        UsageError: the disk is full.
    """
    if not room().tight or array.nbytes < SMALLEST or array.dtype.kind == "O" or _is_mapped(array):
        return array
    _allow_files()
    try:
        with tempfile.TemporaryFile(dir=room().folder, prefix=".qcompiler-") as file:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for at in range(0, flat.size, PIECE):
                file.write(flat[at : at + PIECE].data)
            file.flush()
            content = noted(np.memmap(file, np.uint8, "r"))
    except OSError as error:
        where = room().folder or Path(tempfile.gettempdir())
        raise UsageError(
            f"{array.nbytes >> 20} MiB of weights cannot be put down in '{where}' ({error.strerror}): the model is "
            "larger than the memory that it may take, and needs room on disk. Make room there, write the result to "
            "another disk, or give more with --max-memory."
        ) from error
    found: Array = np.asarray(content).view(array.dtype).reshape(array.shape)
    return found


def noted(mapped: np.memmap[Any, Any]) -> np.memmap[Any, Any]:
    """The same array; its pages are given back when those of all mapped files take too much memory."""
    with _guard:
        _files.add(mapped._mmap)  # type: ignore[attr-defined]  # the only way to it
    return mapped


def looked_at(size: int) -> None:
    """Notes that so many bytes of mapped weights are about to be read; what was read before is given back in time.

    The thread that looks after all pages may not run while a library computes, or where others take the processors.
    """
    running = _running.get()
    if running is None or running.room.piece is None or size < SMALLEST:
        return
    running.read += size
    if running.read > running.room.piece:
        running.read = size
        _drop_pages()


def _give_back(running: _Compilation, done: threading.Event) -> None:
    """While a block of `limited` runs: who looks at weights need not think of the pages that this leaves behind."""
    own: int | None = None  # of the files of libraries, when the model is known to be large
    while not done.wait(_EVERY):
        piece = running.room.piece
        if piece is None or own is None:
            own = None if piece is None else _in_memory()
            continue
        if _in_memory() - own > 2 * piece:
            _drop_pages()


def _drop_pages() -> None:
    with _guard:
        files = list(_files)
    for one in files:
        with suppress(ValueError, OSError):  # it has been closed
            one.madvise(mmap.MADV_DONTNEED)


def _in_memory() -> int:
    """Bytes of files that are in this process's memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * mmap.PAGESIZE


def release(values: Array) -> None:
    """Gives the pages of a view of a mapped file back; they are read again when somebody looks."""
    base: Any = values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if not isinstance(base, np.memmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapped: mmap.mmap = base._mmap  # type: ignore[attr-defined]  # the only way to it
    start = values.ctypes.data - base.ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + values.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if base.offset == 0 and base.mode == "r" and last > first:  # a writable mapping could lose what was written
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


@lru_cache(maxsize=1)
def _allow_files() -> None:
    """Lets this process have as many files open as it may: each mapped array counts as one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    with suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _is_mapped(array: Array) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False
