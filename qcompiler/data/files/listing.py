"""Which files of a folder are the samples: of one kind, in a fixed order, spread over its folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from qcompiler.data.files.arrays import KINDS as ARRAYS
from qcompiler.errors import DataError

PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SOUNDS: Final = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
MOST: Final = 512  # of a folder, where nobody says how many
_OF_PICTURES = ("images", "JPEGImages", "imgs")  # folders beside those in which the answers are, some as pictures
_NOISE = ("Thumbs.db", "desktop.ini")
_HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True)
class FileList:
    """The samples of a folder.

    Attributes:
        kind: `arrays`, `pictures`, `sounds`, or `files` where they are none of these.
        files: those that are read, in the order they are read in.
        there: how many of that kind the folder has.
        folders: in how many folders these lie.
    """

    kind: str
    files: tuple[Path, ...]
    there: int
    folders: int

    def __str__(self) -> str:
        """For people: `8 pictures`, `512 of 50000 pictures, spread over 1000 folders`."""
        count = f"{len(self.files)} of {self.there}" if self.there > len(self.files) else str(self.there)
        kind = self.kind.removesuffix("s") if self.there == 1 else self.kind
        return f"{count} {kind}" + (f", spread over {self.folders} folders" if self.folders > 1 else "")


def kind_of(path: Path) -> str:
    """`arrays`, `pictures` or `sounds`; `files` for all others."""
    ending = path.suffix.lower()
    for kind, endings in (("arrays", ARRAYS), ("pictures", PICTURES), ("sounds", SOUNDS)):
        if ending in endings:
            return kind
    return "files"


def kind_at(path: Path, *, prepared: bool = False) -> str:
    """What the samples of a file or folder are, as of `listing`; empty for a folder without any."""
    try:
        return listing(path, 1, prepared=prepared).kind
    except DataError:
        return ""


def listing(path: Path, samples: int | None, *, prepared: bool = False) -> FileList:
    """The samples of a file or folder.

    Arrays are taken from the folder itself, all of them, in natural order. Of pictures, sounds and other files, which
    are looked for in its folders too, so many as are asked for are chosen (`MOST`, where nobody says), as many as
    possible from every folder, by a hash of their path: neighbours in a folder are often alike.

    Args:
        path: it exists.
        samples: how many are asked for.
        prepared: somebody said how pictures, sounds or other files become samples: where there are any, arrays beside
            them are answers and the like.

    Raises:
        DataError: there are none.
    """
    if path.is_file():
        return FileList(kind_of(path), (path,), 1, 1)
    try:
        own = list(path.iterdir())
    except OSError as error:
        raise DataError(f"folder '{path}' cannot be read: {error.strerror}.") from error
    arrays = sorted((file for file in own if kind_of(file) == "arrays"), key=lambda one: natural(one.name))
    every = [] if arrays and not prepared else list(_below(path))
    if arrays and not any(kind_of(file) in ("pictures", "sounds") for file in every):
        return FileList("arrays", tuple(arrays), len(arrays), 1)
    for kind in ("pictures", "sounds", "files"):
        found = [file for file in every if kind_of(file) == kind]
        if found:
            chosen = spread(path, found, samples or MOST)
            return FileList(kind, tuple(chosen), len(found), len({file.parent for file in found}))
    raise DataError(
        f"folder '{path}' has no .npz file, no .npy file, no picture and no sound; give one file for each sample, such "
        "as an .npz with an array per input."
    )


def spread(root: Path, files: Iterable[Path], count: int) -> list[Path]:
    """So many files, in turn from each folder; which ones depends on their paths below `root` alone."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    rows = [sorted(own, key=lambda one: _hash(root, one)) for own in folders.values()]
    rows.sort(key=lambda own: _hash(root, own[0].parent))
    turns = max(map(len, rows))
    return [own[turn] for turn in range(turns) for own in rows if turn < len(own)][:count]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `x10` behind `x9`."""
    parts: Sequence[tuple[str, str]] = re.findall(r"(\d+)|(\D+)", name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in parts] + [(2, 0, name)]


def _below(path: Path) -> Iterator[Path]:
    """All files but hidden ones; only those below `images` and the like, where answers lie beside them.

    Links to folders are followed, such as classes that were chosen by linking them; each folder is read once.
    """
    homes = [path / name for name in _OF_PICTURES if (path / name).is_dir()]
    seen: set[str] = set()
    for root in homes or [path]:
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith(_HIDDEN))
            files = [] if real in seen else names
            seen.add(real)
            for name in files:
                file = Path(folder, name)
                if not name.startswith(_HIDDEN) and name not in _NOISE and file.is_file():
                    yield file


def _hash(root: Path, path: Path) -> bytes:
    return blake2b(path.relative_to(root).as_posix().encode(), digest_size=8).digest()
