"""A cache in memory, which tells what was asked; work that crosses to another process and back, all in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qcompiler.compiler.base import Done
from qcompiler.compiler.workers.parcel import Named, opened, packed


class Memory:
    """Keeps results by key.

    Attributes:
        kept: by key.
        asked: keys, in the order in which they were asked for.
        hits: names of the stages that were answered, in order; items of stages are not listed.
    """

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, Done[Any], float]] = {}
        self.asked: list[str] = []
        self.hits: list[str] = []

    def get(self, name: str, key: str, inputs: Sequence[object]) -> tuple[Done[Any], float] | None:
        assert inputs or "." in name, name  # an item says all that it depends on in its key
        self.asked.append(key)
        if key not in self.kept:
            return None
        if "." not in name:
            self.hits.append(name)
        return self.kept[key][1:]

    def put(self, name: str, key: str, done: Done[Any], seconds: float, inputs: Sequence[object]) -> None:
        assert inputs or "." in name, name
        self.kept[key] = (name, done, seconds)


def crossing(
    name: str, begin: Callable[..., Callable[[Any], Any]], shared: tuple[Any, ...], items: Iterable[Any]
) -> Iterator[Any]:
    """An `Each` that packs and opens everything, as between processes."""
    assert name
    work = Named.of(begin).found()(*opened(packed(shared)))
    return (opened(packed(work(opened(packed(item))))) for item in items)
