"""The content of a value as a hash: what makes two questions to a stage the same question.

Plain values, arrays, dataclasses and other objects of this package are hashed by what they hold, mappings and sequences
in their order, sets in none. A class for which that is not the point, such as a source of samples, says what it
consists of with a method `content()`. What has no content, such as a session or a closure, is refused: a stage that is
given it cannot be answered from a cache.

What is not changed once it is there is hashed once: read-only arrays, models, and frozen dataclasses that are compared
by identity. A model of gigabytes is an argument of every stage.
"""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qcompiler.ir.model import Model

_SMALL = 1 << 12  # bytes of an array that is hashed again rather than remembered
_known: dict[int, tuple[weakref.ref[Any], str]] = {}  # by id: hashes of what is still alive


@runtime_checkable
class HasContent(Protocol):
    """A value of a class of its own that says what it consists of."""

    def content(self) -> object:
        """Values that `digest` knows; equal for equal values."""


def digest(value: object) -> str:
    """64 hex digits that are the same for values of the same content, in every process.

    Raises:
        TypeError: something in it has no content; the message names its type.
    """
    if not _is_apart(value) or (isinstance(value, np.ndarray) and value.flags.writeable):
        return _hashed(value)
    known = _known.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    found, own = _hashed(value), id(value)
    _known[own] = weakref.ref(value, lambda gone: _forget(own, gone)), found
    return found


def forget() -> None:
    """Forgets all hashes: what is asked for next is hashed anew."""
    _known.clear()


def _forget(own: int, gone: weakref.ref[Any]) -> None:
    """Drops the hash of what is no more; another object may have its place by now."""
    known = _known.get(own)
    if known is not None and known[0] is gone:
        del _known[own]


def _is_apart(value: object) -> bool:
    """Whether it is hashed by itself, and counts by its hash in what holds it."""
    if isinstance(value, np.ndarray):
        return value.nbytes >= _SMALL and value.dtype.kind != "O"
    if isinstance(value, Model):
        return True
    settings = getattr(type(value), "__dataclass_params__", None)
    return settings is not None and settings.frozen and not settings.eq and not hasattr(type(value), "__slots__")


def _hashed(value: object) -> str:
    state = blake2b(digest_size=32)
    for piece in _pieces(value):
        state.update(len(piece).to_bytes(8, "little"))
        state.update(piece)
    return state.hexdigest()


def _parts(value: object) -> Iterable[Any]:
    """The bytes of a value inside another."""
    if _is_apart(value):
        yield b"hashed"
        yield digest(value).encode()
    else:
        yield from _pieces(value)


def _pieces(value: object) -> Iterable[Any]:
    """The bytes of a value, with its type in front, so that 1, 1.0, "1" and (1,) differ."""
    kind = type(value).__qualname__.encode()
    if value is None or isinstance(value, bool | int | float | complex | np.generic):
        yield kind + repr(value).encode()
    elif isinstance(value, str | bytes):
        yield kind
        yield value.encode("utf8", "surrogateescape") if isinstance(value, str) else value
    elif isinstance(value, Enum):
        yield f"{kind.decode()}.{value.name}".encode()
    elif isinstance(value, np.ndarray):
        yield from _array(value)
    elif isinstance(value, HasContent):
        yield kind
        yield from _parts(value.content())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield kind
        for one in dataclasses.fields(value):
            yield one.name.encode()
            yield from _parts(getattr(value, one.name))
    else:
        yield from _container(value)


def _array(value: np.ndarray[Any, Any]) -> Iterable[Any]:
    yield f"{value.dtype.str} {value.dtype.name} {value.shape}".encode()
    if value.dtype.kind == "O":
        yield from _parts(value.tolist())
    else:
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _container(value: object) -> Iterable[Any]:
    kind = type(value).__qualname__.encode()
    if isinstance(value, Mapping):
        yield b"mapping %d" % len(value)
        for key, one in value.items():
            yield from _parts(key)
            yield from _parts(one)
    elif isinstance(value, Sequence):
        yield b"sequence %d" % len(value)
        for one in value:
            yield from _parts(one)
    elif isinstance(value, AbstractSet):
        yield b"set %d" % len(value)
        yield "".join(sorted(digest(one) for one in value)).encode()
    elif isinstance(value, PurePath | np.dtype | re.Pattern | slice):
        yield kind + str(value).encode()
    elif isinstance(value, type | FunctionType) and "<locals>" not in value.__qualname__:
        yield f"{value.__module__}:{value.__qualname__}".encode()
    elif type(value).__module__.startswith("qcompiler.") and (state := _state(value)):
        yield kind
        yield from _container(state)
    else:
        raise TypeError(f"a value of type {kind.decode()} has no content: no stage can be given it and be kept")


def _state(value: object) -> dict[str, object]:
    """The attributes of an object by name, those in slots included."""
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ())]
    return {name: getattr(value, name) for name in (*slots, *getattr(value, "__dict__", ())) if hasattr(value, name)}
