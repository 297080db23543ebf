"""The same work on many items: in turn here, or wherever whoever is handed over as `Each` has it done.

And work that need not be done where somebody has done it before: whoever is handed over as `Keeper` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

I_contra = TypeVar("I_contra", contravariant=True)
I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


class Each(Protocol):
    """Does the work on every item."""

    def __call__(
        self, name: str, begin: Callable[..., Callable[[I], T]], shared: tuple[Any, ...], items: Iterable[I]
    ) -> Iterator[T]:
        """The results, in the order of the items.

        Args:
            name: of this kind of items, in the stage that asks.
            begin: importable by its name; called with `shared`, it gives the function of one item.
            shared: what all items need. Values, no sessions and no closures: they may cross to another machine.
            items: values as well; read as they are needed.
        """


class Keeper(Protocol):
    """Keeps results of pieces of work, also beyond the end of the process."""

    def __call__(self, name: str, inputs: Sequence[object], make: Callable[[], T]) -> T:
        """The result, made or at hand.

        Args:
            name: of this kind of work, wherever it is asked for.
            inputs: values; all that the result depends on.
            make: the work; what it returns is not changed afterwards.
        """


@dataclass(frozen=True, eq=False)
class Others:
    """Who else may have done a piece of work, or may do it.

    Attributes:
        keep: knows what was done before.
        each: shares work out; None where nobody else works.
    """

    keep: Keeper
    each: Each | None = None


def in_turn(
    name: str,
    begin: Callable[..., Callable[[I], T]],
    shared: tuple[Any, ...],
    items: Iterable[I],
) -> Iterator[T]:
    """Here, one after the other; see `Each`."""
    work = begin(*shared)
    return map(work, items)
