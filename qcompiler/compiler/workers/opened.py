"""Who does the work: as the recipe and the command line say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


class Workers(Protocol):
    """Does items of work somewhere else.

    Attributes:
        threads: that an item may take, inside an operator.
    """

    @property
    def threads(self) -> int: ...  # noqa: D102

    def each(self, begin: Callable[..., Callable[[I], T]], shared: tuple[Any, ...], items: Iterable[I]) -> Iterator[T]:
        """The results in the order of the items, as of `support.each.Each`."""

    def close(self) -> None:
        """Lets go of whoever works."""


@contextmanager
def at_work(workers: int, ray: str | None) -> Iterator[Workers | None]:
    """Those that `opened` finds, as long as the block lasts."""
    found = opened(workers, ray)
    try:
        yield found
    finally:
        if found is not None:
            found.close()


def opened(workers: int, ray: str | None) -> Workers | None:
    """Processes or a cluster; None for work here.

    Args:
        workers: how many processes; 1 for none.
        ray: the address of a cluster, which goes before processes; None for none.

    Raises:
        UsageError: there is no such cluster.
    """
    if ray:
        from qcompiler.compiler.workers.cluster import Cluster

        return Cluster(ray)
    if workers > 1:
        from qcompiler.compiler.workers.processes import Processes

        return Processes(workers)
    return None
