"""What data consists of before it is opened: the bytes of its files, so that the same path with other files differs."""

from __future__ import annotations

from pathlib import Path

from qcompiler.data.source import Data, Prepared
from qcompiler.data.text import Text
from qcompiler.support.file import File


def content_of(data: Data | None) -> object:
    """Values that say what the data is: for files, names and hashes; anything else as it is given.

    Every file of a folder is read once.
    """
    if isinstance(data, Text):
        return data, tuple(File.of(file) for file in data.files), tokenizer_of(data.tokenizer)
    if isinstance(data, Prepared):
        return data.table, content_of(data.path)
    if not isinstance(data, str | Path):
        return data
    path = Path(data)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file())
        return str(data), tuple((file.relative_to(path), File.of(file)) for file in found)
    return str(data), File.of(path) if path.is_file() else None


def tokenizer_of(path: str | Path | None) -> File | None:
    """The file that a tokenizer is read from; None where there is none, which whoever reads it will say."""
    if path is None:
        return None
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    return File.of(file) if file.is_file() else None


def is_code(data: Data | None) -> bool:
    """Whether a function of the user makes it: what that depends on, only the user knows."""
    if isinstance(data, Prepared):
        return is_code(data.path)
    if isinstance(data, str):
        return ":" in data and not Path(data).exists()
    return callable(data)
