"""Processes on this machine.

What items share is written to a folder once and mapped by every process, so that it is in memory once. A process that
dies, by a crash in a library or for want of memory, costs the items that were running, which are done again.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from qcompiler.compiler.content import digest
from qcompiler.compiler.kept.store import Store
from qcompiler.compiler.workers.parcel import Array, Named, Parcel, opened, packed, work
from qcompiler.errors import UsageError
from qcompiler.support.held import workshop
from qcompiler.support.interrupts import end_with_parent, ignored_by_children
from qcompiler.support.machine import available_processors

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

_DEATHS = 3  # of processes over one item, behind which it is not tried again
_WAITING = 2  # items for each process that are packed ahead
_ENTRY = "shared"
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Mapped:
    """What items share, in a folder.

    Attributes:
        folder: where it lies.
        own: as of `Parcel`.
        arrays: the names of its arrays.
    """

    folder: Path
    own: str
    arrays: tuple[str, ...]

    @staticmethod
    def of(value: object, folder: Path) -> Mapped:
        """Writes it."""
        parcel, store = packed(value), Store(folder, _NO_LIMIT)
        store.put_entry(_ENTRY, parcel.content)
        for name, array in parcel.arrays.items():
            store.put_blob(name, array)
        return Mapped(folder, parcel.own, tuple(parcel.arrays))

    def parcel(self) -> Parcel:
        """It, with its arrays mapped."""
        store = Store(self.folder, _NO_LIMIT)
        found: dict[str, Array] = {}
        for name in self.arrays:
            array = store.blob(name)
            if array is None:
                raise FileNotFoundError(f"'{self.folder}' is not there any more")
            found[name] = array
        return Parcel(store.entry(_ENTRY) or b"", found, self.own)


class Processes:
    """Work in processes.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    @property
    def threads(self) -> int:
        """Its part of the processors."""
        return max(1, available_processors() // self.count)

    def each(self, begin: Callable[..., Callable[[I], T]], shared: tuple[Any, ...], items: Iterable[I]) -> Iterator[T]:
        """As of `support.each.Each`.

        Raises:
            UsageError: processes die again and again over an item.
        """
        items = iter(items)
        head = list(islice(items, 1))
        if not head:  # all of it is known
            return
        with workshop(Path(tempfile.gettempdir())) as folder:
            named, held = Named.of(begin), Mapped.of(shared, folder)
            key = digest((named, str(folder)))
            waiting: deque[_Item] = deque()
            for item in chain(head, items):
                waiting.append(self._begin(_Item(key, named, held, packed(item))))
                if len(waiting) >= _WAITING * self.count:
                    yield self._result(waiting)
            while waiting:
                yield self._result(waiting)

    def close(self) -> None:
        """Ends the processes; what they are at is given up."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):  # nobody waits for what they are at
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _begin(self, item: _Item) -> _Item:
        with ignored_by_children():  # this process ends them
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self.count, get_context("spawn"), end_with_parent)
            item.future = self._pool.submit(work, item.key, item.begin, item.shared, item.parcel)
        return item

    def _result(self, waiting: deque[_Item]) -> Any:
        """The result of the first one; whatever a dead process has taken along is begun again."""
        while True:
            first = waiting[0]
            try:
                assert first.future is not None
                found = first.future.result()
            except BrokenProcessPool:
                self._mourn(waiting)
            else:
                waiting.popleft()
                return opened(found)

    def _mourn(self, waiting: deque[_Item]) -> None:
        """New processes for all that are not done; nobody knows which item was the one, so it is the first."""
        self._pool = None
        waiting[0].deaths += 1
        if waiting[0].deaths == _DEATHS:
            raise UsageError(
                f"a process of --workers {self.count} ended {_DEATHS} times over the same piece of work, perhaps for "
                "want of memory: try fewer workers, or none to see where it ends"
            )
        for item in waiting:
            if item.future is None or not item.future.done() or item.future.exception() is not None:
                self._begin(item)


class _Item:
    """One item on its way."""

    def __init__(self, key: str, begin: Named, shared: Mapped, parcel: Parcel) -> None:
        self.key, self.begin, self.shared, self.parcel = key, begin, shared, parcel
        self.future: Future[Parcel] | None = None
        self.deaths = 0
