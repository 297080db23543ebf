"""What is visible inside a nested graph: its own things, then those of the graphs around it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def within(around: Mapping[K, V], own: MutableMapping[K, V]) -> MutableMapping[K, V]:
    """`own` where it has a key, else `around`; both as they are at the time, and only `own` is ever written to.

    A merged copy for each nested graph would cost all that is around it every time.
    """
    if not around:
        return own
    outer: Any = around  # ChainMap wants what it never writes to mutable
    return ChainMap(own, *(outer.maps if isinstance(outer, ChainMap) else (outer,)))
