"""A file as manifests know it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """Name without folder, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    bytes: int

    @staticmethod
    def of(path: str | Path) -> File:
        """Reads a file once, in pieces."""
        digest = hashlib.sha256()
        with Path(path).open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
            return File(Path(path).name, digest.hexdigest(), stream.tell())


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as manifests know it: its file, and those beside it that hold its large weights.

    Attributes:
        name: without folder.
        sha256: in hex.
        bytes: of the file itself.
        data: the others, in their order.
    """

    name: str
    sha256: str
    bytes: int
    data: tuple[File, ...] = ()

    @staticmethod
    def of(path: str | Path, data: Iterable[str | Path] = ()) -> ModelFile:
        """Reads all of them once."""
        own = File.of(path)
        return ModelFile(own.name, own.sha256, own.bytes, tuple(File.of(one) for one in data))
