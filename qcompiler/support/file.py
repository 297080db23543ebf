"""A file as manifests know it."""

from __future__ import annotations

import hashlib
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
