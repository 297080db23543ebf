"""Files named after their content, in a folder that compilations share.

    ROOT/entries/3f/3f9a…-observe   what a stage handed back, without its large arrays
    ROOT/blobs/c1/c1d0…             the bytes of an array, once, however many entries hold it

A file appears by one rename, so nobody ever sees half of one, and two compilations that write the same content do not
disturb each other. What was not used for longest is removed first when all of it exceeds the limit. Files that are
mapped stay readable for whoever maps them when they are removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.ir.weights import map_file
from qcompiler.support.held import FILE, hold, sweep

LAYOUT = "1"  # grows when files of another layout may lie there
_MAPPED = 1 << 20  # bytes from which on a blob is mapped instead of read
_ABANDONED = 3600.0  # seconds behind which a draft that nobody could lock belongs to nobody any more
_ROOM = 0.9  # of the limit that is left when room is made, so that it is not made at every write
_HASH = 32  # bytes of a hash in front of an entry

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class KeptFile:
    """One file of the store.

    Attributes:
        path: where it lies.
        kind: "entries" or "blobs".
        size: in bytes.
        used: seconds since the epoch when it was last used.
    """

    path: Path
    kind: str
    size: int
    used: float


class Store:
    """A folder of entries and blobs.

    Args:
        root: the folder; made at the first write.
        limit: bytes that it may take.

    Attributes:
        root: the folder of this layout.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root / f"v{LAYOUT}"
        self.limit = limit
        self._written = limit  # since room was made last: the first write looks

    def entry(self, name: str) -> bytes | None:
        """The content of an entry; None where there is none.

        Raises:
            ValueError: it is not what was written.
        """
        path = self._path("entries", name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(content)[_HASH:]
        if blake2b(body, digest_size=_HASH).digest() != content[:_HASH]:
            raise ValueError(f"'{path}' is damaged")
        _touch(path)
        return bytes(body)

    def put_entry(self, name: str, content: bytes) -> None:
        """Keeps the content of an entry.

        Raises:
            OSError: it cannot be written.
        """
        self._put("entries", name, blake2b(content, digest_size=_HASH).digest(), content)

    def blob(self, name: str) -> Array | None:
        """The bytes of a blob, read-only, mapped where there are many; None where there is none.

        Nobody but the caller knows what the name says of the content, so it is the caller who checks it.
        """
        path = self._path("blobs", name)
        try:
            found = map_file(path) if path.stat().st_size >= _MAPPED else np.frombuffer(path.read_bytes(), np.uint8)
        except FileNotFoundError:
            return None
        _touch(path)
        return found

    def put_blob(self, name: str, content: Array, *, again: bool = False) -> None:
        """Keeps the bytes of an array; what is there already is only written again where that is asked.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path("blobs", name)
        if path.exists() and not again:
            _touch(path)
            return
        self._put("blobs", name, np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)

    def drop(self, kind: str, name: str) -> None:
        """Removes a file, if it is there."""
        self._path(kind, name).unlink(missing_ok=True)

    def files(self) -> Iterator[KeptFile]:
        """Everything that is kept, in no order."""
        for kind in ("entries", "blobs"):
            for path in (self.root / kind).glob("??/*"):
                with contextlib.suppress(FileNotFoundError):  # another compilation makes room
                    found = path.stat()
                    yield KeptFile(path, kind, found.st_size, found.st_mtime)

    def make_room(self, limit: int) -> int:
        """Removes what was not used for longest until at most `limit` bytes are left; returns the bytes removed."""
        self._sweep()
        found = sorted(self.files(), key=lambda one: one.used)
        left = sum(one.size for one in found)
        before = left
        for one in found:
            if left <= limit:
                break
            one.path.unlink(missing_ok=True)
            left -= one.size
        return before - left

    def clear(self) -> int:
        """Removes everything; returns the bytes removed."""
        return self.make_room(0)

    def _sweep(self) -> None:
        """Removes drafts that a killed compilation left behind; where files cannot be locked, in an hour."""
        sweep(self.root / "drafts", "*")
        for draft in self.root.glob("drafts/*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _ABANDONED:
                    draft.unlink()

    def _put(self, kind: str, name: str, *pieces: bytes | memoryview) -> None:
        self._written += sum(len(piece) for piece in pieces)
        if self._written > (1 - _ROOM) * self.limit / 2:
            self._written = 0
            self.make_room(int(_ROOM * self.limit))
        path = self._path(kind, name)
        drafts = self.root / "drafts"
        self.root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.root, path.parent.parent, path.parent, drafts):
            folder.mkdir(exist_ok=True, mode=0o700)
        draft, handle = _draft(drafts)
        try:
            with draft.open("wb") as stream:
                for piece in pieces:
                    stream.write(piece)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
            os.close(handle)

    def _path(self, kind: str, name: str) -> Path:
        return self.root / kind / name[:2] / name


def _draft(folder: Path) -> tuple[Path, int]:
    """A new file, and the handle that locks it; another one where it was swept away before the lock stood."""
    while True:
        path = folder / secrets.token_hex(8)
        path.touch(mode=0o600, exist_ok=False)
        handle = hold(path, FILE)
        if handle is not None:
            return path, handle


def _touch(path: Path) -> None:
    """Notes that it was used now; on a file system that is read-only, or where it is gone by now, it is not."""
    with contextlib.suppress(OSError):
        os.utime(path)
