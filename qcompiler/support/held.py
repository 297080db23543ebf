"""Drafts that say whether somebody still works on them, so that what a killed process left can be told and removed.

Who makes a draft locks it as long as he lives; the system lets go of the lock with the process, however that ends. A
draft that can be locked by somebody else is therefore nobody's. Where there are no such locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qcompiler.support.interrupts import unbroken

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX: Final = ".qcompiler-"  # of folders
FILE: Final = os.O_RDWR
FOLDER: Final = os.O_RDONLY


def hold(path: Path, flags: int) -> int | None:
    """Locks a file (`FILE`) or folder (`FOLDER`) that was just made.

    Returns:
        The handle to close at the end; None where it is gone by now, because somebody took it for abandoned.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    except PermissionError:  # Windows opens no folders
        return os.open(os.devnull, os.O_RDONLY)
    _lock(handle)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    os.close(handle)
    return None


@contextlib.contextmanager
def workshop(beside: Path) -> Iterator[Path]:
    """A new folder in another one, on its file system, so that what is made there can be renamed; gone at the end.

    Those that killed processes left there are removed.

    Raises:
        OSError: it cannot be made.
    """
    sweep(beside, f"{PREFIX}*")
    path, handle = None, None
    try:
        with unbroken():
            while path is None or handle is None:
                path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside))
                handle = hold(path, FOLDER)
        yield path
    finally:
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, pattern: str) -> None:
    """Removes the drafts of this name, files or folders, that nobody works on.

    Args:
        folder: where they lie; it need not be there.
        pattern: of their names, as of `Path.glob`.
    """
    if fcntl is None:
        return
    for path in list(_found(folder, pattern)):
        with contextlib.suppress(OSError):  # somebody else is at it
            _remove_abandoned(path)


def _found(folder: Path, pattern: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.glob(pattern)


def _remove_abandoned(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, FOLDER if path.is_dir() else FILE)
    try:
        if not _lock(handle):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the lock is ours; the lock of a process that waits for nobody."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or a file system without locks
        return False
    return True
