"""What an export needs of the machine: disk for what it writes, memory to hold the result against torch."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from qcompiler.errors import UsageError
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.writing import EMBEDDED, width
from qcompiler.support.machine import available_memory
from qcompiler.support.memory import room

_HELD = 3
"""How often all weights lie in memory while a graph is held against torch: there, in ONNX Runtime, and repacked."""
_SHARE = 4
"""What part of the memory that is free may be taken for it: others want some, and no proof is worth swapping."""


def check_disk(loaded: LoadedModule, folder: Path) -> None:
    """Makes sure that there is room for what is written; a model of one file is made of another one.

    Args:
        loaded: the model.
        folder: where it goes.

    Raises:
        UsageError: there is not.
    """
    late = sum(math.prod(one.shape) * width(one.dtype) for one in loaded.reserve.weights(loaded.module))
    need = late if late > EMBEDDED else 2 * late
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UsageError(
            f"the folder '{folder}' has {in_words(free)} of room, and the weights of {loaded.name} take "
            f"{in_words(need)}: free some, or choose another output with -o, on a disk that has room."
        )


def lacking(loaded: LoadedModule) -> str:
    """What is lacking to run the whole model beside torch, as a part of a sentence; empty where it can be run.

    It is asked of folders only: a module that is given is in memory already.
    """
    need = _HELD * sum(4 * math.prod(one.shape) for one in loaded.reserve.weights(loaded.module))
    limit, free = room().limit, available_memory()  # the limit is that of a compilation that exports first
    if limit is not None:
        return (
            "" if need <= limit else f"all of it takes about {in_words(need)} of memory, and {in_words(limit)} may be"
        )
    if free is None or need * _SHARE <= free:
        return ""
    return (
        f"all of it takes about {in_words(need)} of memory, more than a quarter of the {in_words(free)} that are free"
    )


def in_words(size: int) -> str:
    """Bytes as people write them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
