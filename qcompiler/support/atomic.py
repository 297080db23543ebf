"""Files that appear complete or not at all, alone or as a set.

Everything is written to temporary files beside its place, flushed, and renamed at the end; whatever happens before that
leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from qcompiler.errors import UsageError
from qcompiler.support.held import FILE, hold, sweep
from qcompiler.support.interrupts import WRITTEN, unbroken

_RANDOM = 4  # bytes in the name of a draft


class Artefacts:
    """A set of files that take their names together when the `with` block ends without an exception.

        with Artefacts() as files:
            files.write_text(folder / "model.manifest.json", text)
            big = files.stage(folder / "model.engine")   # a temporary path to write to
            ...

    Renaming is atomic for each file. If one rename fails, those before it stay: they are complete.

    Raises:
        UsageError: a folder cannot be made or written, or is full; the message names it. Nothing is left behind.
    """

    def __init__(self) -> None:
        self._drafts: dict[Path, Path] = {}
        self._handles: list[int] = []  # that lock the drafts
        self.folders: list[Path] = []  # made for the files, innermost first

    def stage(self, path: str | Path) -> Path:
        """An empty temporary file in the same folder, which will take the name `path`."""
        target = Path(path)
        try:
            _refuse_special(target)
            self.folders = make_folder(target.parent) + self.folders
            sweep(target.parent, f".{glob.escape(target.name)}.{'?' * 2 * _RANDOM}.tmp")
            with unbroken():
                draft = self._drafts[target] = self._draft(target)
        except OSError as error:
            raise unwritable(target, error) from error
        return draft

    def _draft(self, target: Path) -> Path:
        """A new file, locked; another one where it was swept away before the lock stood."""
        while True:
            draft = target.with_name(f".{target.name}.{secrets.token_hex(_RANDOM)}.tmp")
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            handle = hold(draft, FILE)
            if handle is not None:
                self._handles.append(handle)
                return draft

    def write_bytes(self, path: str | Path, content: bytes) -> None:
        """Adds a file with this content."""
        draft = self.stage(path)
        try:
            draft.write_bytes(content)
        except OSError as error:
            raise unwritable(Path(path), error) from error

    def write_text(self, path: str | Path, content: str) -> None:
        """Adds a file with this content in UTF-8."""
        self.write_bytes(path, content.encode("utf8"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._publish()
        finally:
            for draft in self._drafts.values():
                draft.unlink(missing_ok=True)
            self._let_go()
            remove_empty(self.folders)  # of those that have files by now, none goes
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and self._drafts:
            raise unwritable(next(iter(self._drafts)), error) from error

    def _let_go(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _publish(self) -> None:
        for target, draft in self._drafts.items():
            try:
                flush(draft)
            except OSError as error:
                raise unwritable(target, error) from error
        with unbroken(WRITTEN):
            for target, draft in self._drafts.items():
                try:
                    os.replace(draft, target)
                except OSError as error:
                    raise unwritable(target, error) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes one file, complete or not at all.

    Raises:
        UsageError: the folder cannot be written or is full.
    """
    with Artefacts() as files:
        files.write_bytes(path, content)


def write_text(path: str | Path, content: str) -> None:
    """Writes one UTF-8 file, complete or not at all; raises as `write_bytes` does."""
    write_bytes(path, content.encode("utf8"))


@contextlib.contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yields the path of an empty temporary file in the same folder, which takes the name `path` if all goes well.

    The folder is flushed too, so that the name outlives a crash of the machine.

    Raises:
        UsageError: the folder cannot be written or is full, or whatever is written in the block raises OSError.
    """
    target = Path(path)
    try:
        with Artefacts() as files:
            yield files.stage(target)
        flush_folder(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def check_writable(path: str | Path) -> None:
    """Finds out before a long run whether a file can be written there; leaves nothing behind.

    Raises:
        UsageError: it cannot.
    """
    files = Artefacts()
    try:
        files.stage(path).unlink()
    finally:
        files._let_go()
        remove_empty(files.folders)


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those that were not there before, innermost first.

    Raises:
        OSError: it cannot be made; no part of it is left.
    """
    missing = list(takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders that are there and empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _refuse_special(target: Path) -> None:
    """Renaming replaces whatever has the name, even a device: then no program could open it any more."""
    holder = next((one for one in target.parents if one.exists()), None)
    if holder is not None and not holder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"'{holder}' is not a folder", str(target))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(target))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is a device or pipe, not a regular file", str(target))


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for an output that cannot be written."""
    return UsageError(
        f"cannot write '{path.name}' in folder '{path.parent}': {error.strerror or error}. Choose another "
        "output with -o, in a folder that is writable and has room."
    )


def flush(path: Path, flags: int = os.O_RDWR) -> None:
    """Waits until a file is on the disk, so that the machine may crash.

    Raises:
        OSError: it cannot be opened or written.
    """
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """The same for the names in a folder, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems in a network flush none
        flush(folder, os.O_RDONLY)
