"""An engine for one GPU out of the files of a model that may come from elsewhere: `support.each` begins it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.engines import Profile, for_target
from qcompiler.support.machine import version_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.target import Target

LIBRARIES = ("tensorrt-rtx", "tensorrt")


@dataclass(frozen=True, eq=False)
class EngineApart:
    """An engine that was built for one GPU.

    Attributes:
        content: of its file, uint8.
        seconds: that it took.
        warnings: of the library.
    """

    content: NDArray[np.uint8]
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Needed:
    """What a build needs, as values.

    Attributes:
        target: engine, and GPUs of which one is taken.
        files: by name, uint8; the first one is the model, which refers to the others by their names.
        profiles: optimization profiles.
        versions: of the libraries: another one would build another engine.
    """

    target: Target
    files: Mapping[str, NDArray[np.uint8]]
    profiles: tuple[Profile, ...]
    versions: tuple[str | None, ...]

    @staticmethod
    def of(target: Target, files: Sequence[Path], profiles: Sequence[Profile]) -> Needed:
        """Maps the files."""
        read = {path.name: np.asarray(np.memmap(path, np.uint8, "r")) for path in files}
        return Needed(target, read, tuple(profiles), tuple(map(version_of, LIBRARIES)))


class BuildingApart:
    """Builds engines for one GPU each.

    Args:
        needed: files and profiles.
    """

    def __init__(self, needed: Needed) -> None:
        self._needed = needed

    def __call__(self, sm: str) -> EngineApart:
        """The engine for a GPU.

        Raises:
            EngineError: the back-end refuses the model.
        """
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            for name, content in self._needed.files.items():
                np.asarray(content).tofile(Path(folder) / name)
            model = Path(folder) / next(iter(self._needed.files))
            engine = for_target(replace(self._needed.target, sms=(sm,)))
            built = engine.build(model, Path(folder) / "engine", self._needed.profiles)
            return EngineApart(np.fromfile(built.path, np.uint8), built.seconds, built.warnings)
