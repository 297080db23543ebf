"""A model folder's load.py: the only place where its code (and its image or text libraries) is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from benchmarks.children.common import Feeds


class Loader(Protocol):
    """What a load.py has."""

    METRIC: str
    HIGHER_IS_BETTER: bool

    def calibration_feeds(self, n: int, /) -> Iterator[Feeds]:
        """`n` feeds, which may be batches."""

    def evaluate(self, run: Callable[[Feeds], list[Any]], /) -> float:
        """The score of a model."""


def open_loader(folder: Path) -> Any:
    """Imports `folder`/load.py; returns a `Loader`.

    Raises:
        FileNotFoundError: There is none.
    """
    path = folder / "load.py"
    spec = importlib.util.spec_from_file_location(f"loader_{folder.name.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
