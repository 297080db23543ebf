"""Work as bytes that cross to another process, and the process that does it.

What all items share, such as a model, crosses once: a process keeps what it opened last. A process in which another
qcompiler is installed would compute something else, so it refuses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qcompiler.compiler.kept.packing import pack, unpack
from qcompiler.compiler.kept.results import own_files
from qcompiler.errors import UsageError
from qcompiler.support.memory import room, tight

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Parcel:
    """A value, packed.

    Attributes:
        content: without its large arrays.
        arrays: their bytes, by their hash.
        own: the files of the qcompiler that packed it, as a hash.
        memory: bytes that whoever opens it may take, where weights are held piece by piece; None where they are not.
    """

    content: bytes
    arrays: Mapping[str, Array]
    own: str
    memory: int | None = None

    def parcel(self) -> Parcel:
        """Itself."""
        return self


def packed(value: object) -> Parcel:
    """A value as something that crosses to another process; array for array it is shared, not copied."""
    arrays: dict[str, Array] = {}

    def keep(name: str, array: Array) -> None:
        arrays[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    now = room()
    return Parcel(pack(value, keep), arrays, own_files(), now.limit if now.tight else None)


def opened(parcel: Parcel) -> Any:
    """The value of a parcel.

    Raises:
        UsageError: another qcompiler packed it.
    """
    if parcel.own != own_files():
        import platform

        raise UsageError(
            f"on '{platform.node()}' another version of qcompiler is installed than where the compilation was started: "
            "install the same one on every node"
        )

    def array(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        found = np.asarray(parcel.arrays[name]).view(dtype).reshape(shape)
        found.flags.writeable = False
        return found

    return unpack(parcel.content, array, {})


@dataclass(frozen=True)
class Named:
    """A function by its module and name."""

    module: str
    name: str

    @staticmethod
    def of(function: Callable[..., Any]) -> Named:
        """That function, which must be importable by its name."""
        return Named(function.__module__, function.__qualname__)

    def found(self) -> Callable[..., Any]:
        """The function itself."""
        found: Any = import_module(self.module)
        for part in self.name.split("."):
            found = getattr(found, part)
        return found  # type: ignore[no-any-return]


class Shared(Protocol):
    """What all items share, wherever its bytes lie."""

    def parcel(self) -> Parcel:
        """It, packed."""


_begun: dict[str, Callable[[Any], Any]] = {}  # of what this process works on: one


def work(key: str, begin: Named, shared: Shared, item: Parcel) -> Parcel:
    """Does one item, in a process of its own.

    Args:
        key: of the function and what it shares; as long as that is the same, it is not begun again.
        begin: gives the function of an item.
        shared: what it is given.
        item: the item.
    """
    with tight(item.memory, Path(tempfile.gettempdir())):
        if key not in _begun:
            _begun.clear()
            _begun[key] = begin.found()(*opened(shared.parcel()))
        return packed(_begun[key](opened(item)))
