"""Orders of axes: a layout is a tuple that says which axis of a common order each axis of a tensor is.

`transpose(transpose(a, p), q) = transpose(a, then(p, q))`.
"""

from __future__ import annotations

Layout = tuple[int, ...]


def straight(rank: int) -> Layout:
    """The order that changes nothing."""
    return tuple(range(rank))


def then(first: Layout, second: Layout) -> Layout:
    """One order for a transposition by `first` and another by `second` behind it."""
    return tuple(first[axis] for axis in second)


def back(order: Layout) -> Layout:
    """The order that undoes this one; it also says where each axis went."""
    return tuple(order.index(axis) for axis in range(len(order)))


def between(stored: Layout, wanted: Layout) -> Layout:
    """By which order what is stored in one layout comes to lie in another."""
    return tuple(stored.index(axis) for axis in wanted)
