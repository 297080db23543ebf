"""Inner loops that numba compiles for this machine, each with a twin in numpy for where numba is not installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

COMPILED_FROM = 4096  # below this many elements, numpy is done before a compiled loop pays

F = TypeVar("F", bound=Callable[..., None])


class Loop(Generic[F]):
    """One loop, written twice; it is compiled when it is first needed, once in a process.

    Args:
        plain: the numpy way.
        loop: what numba compiles; it computes the same and does not hold the interpreter lock.
        signature: makes the loop's signature of `numba.types`, so that numba is imported no sooner than needed.
        options: more options of `numba.njit`.
    """

    def __init__(self, plain: F, loop: Callable[..., None], signature: Callable[[Any], Any], **options: Any) -> None:
        self._plain, self._loop, self._signature, self._options = plain, loop, signature, options
        self._building = threading.Lock()

    def of(self, size: int, compiled: bool | None = None) -> F:
        """The way to take for so many elements.

        Args:
            size: number of elements.
            compiled: True or False forces the numba or the numpy way; None takes numba from COMPILED_FROM elements on.
                Without numba it is numpy always.
        """
        if compiled is None:
            compiled = size >= COMPILED_FROM
        if not compiled:
            return self._plain
        with self._building:
            return self._compiled or self._plain

    @cached_property
    def _compiled(self) -> F | None:
        """From the cache on disk where one can be written; None without numba."""
        try:
            import numba
        except ImportError:
            return None
        if numba.config.DISABLE_JIT:
            return None
        signature, options = self._signature(numba.types), {"nogil": True, **self._options}
        try:
            made: F = numba.njit(signature, cache=True, **options)(self._loop)
        except RuntimeError:  # numba found no directory to cache in
            made = numba.njit(signature, **options)(self._loop)
        return made
