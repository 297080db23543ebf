"""Profiles out of feeds: three shapes that fit together, hold all feeds, and whose usual one is a feed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.data import profiles
from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.profiles import Misfit, Shapes
from qcompiler.data.samples import ShapeRange
from qcompiler.errors import DataError
from qcompiler.ir.signature import Inputs, InputShapes
from tests.data.samples import F32

ANYTHING: Misfit = lambda shapes: ""  # noqa: E731
# A chunk of n, a cache of m, and a mask over both
LINKED: Inputs = {"chunk": (F32, ("b", "n", 3)), "cache": (F32, ("b", "m")), "mask": (F32, ("b", "t"))}


def seen(*shapes: Shapes) -> ShapeRange:
    found = ShapeRange()
    for one in shapes:
        found.watch({name: np.zeros(shape, np.float32) for name, shape in one.items()})
    return found


def linked(*sizes: tuple[int, int], batch: int = 1) -> ShapeRange:
    return seen(*({"chunk": (batch, n, 3), "cache": (batch, m), "mask": (batch, n + m)} for n, m in sizes))


def adds_up(shapes: Shapes) -> str:
    n, m, t = shapes["chunk"][1], shapes["cache"][1], shapes["mask"][1]
    return "" if n + m == t else f"{n} + {m} is not {t}"


def test_each_axis_by_itself() -> None:
    inputs: Inputs = {"x": (F32, ("batch", "length", 3)), "fixed": (F32, (2,)), "seq": (F32, (2, None))}
    found = seen(*({"x": (b, n, 3), "fixed": (2,), "seq": (2, n)} for b, n in ((4, 9), (2, 5), (8, 7))))
    assert profiles.by_itself(found, inputs, BatchAxes({"x": 0})) == {
        "x": InputShapes((1, 5, 3), (4, 7, 3), (8, 9, 3)),
        "seq": InputShapes((2, 5), (2, 7), (2, 9)),
    }
    assert profiles.by_itself(found, inputs, NO_BATCH)["x"].min == (2, 5, 3)
    assert profiles.by_itself(ShapeRange(), inputs, NO_BATCH) == {}


def test_the_usual_shapes_are_those_of_one_feed() -> None:
    found = linked((100, 0), (100, 0), (4, 90), (4, 90), (4, 90), (50, 5), (50, 5))
    usual = profiles.usual(found, LINKED, NO_BATCH)
    assert usual in ({"chunk": (1, n, 3), "cache": (1, m), "mask": (1, n + m)} for n, m in ((100, 0), (4, 90), (50, 5)))
    assert profiles.usual(ShapeRange(), LINKED, NO_BATCH) == {}


def test_sums_that_hold_in_all_feeds_keep_the_ends_together() -> None:
    found = profiles.consistent(linked((64, 0), (16, 80), (8, 136), (32, 32)), LINKED, NO_BATCH, adds_up)
    assert (found["chunk"].min, found["cache"].min, found["mask"].min) == ((1, 8, 3), (1, 0), (1, 8))
    assert (found["chunk"].max, found["cache"].max, found["mask"].max) == ((1, 64, 3), (1, 136), (1, 200))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=8), st.integers(1, 4))
def test_the_three_fit_together_and_hold_all_feeds(sizes: list[tuple[int, int]], batch: int) -> None:
    axes = BatchAxes(dict.fromkeys(LINKED, 0))
    found = profiles.consistent(linked(*sizes, batch=batch), LINKED, axes, adds_up)
    for end in range(3):
        assert adds_up({name: three[end] for name, three in found.items()}) == ""
    for n, m in sizes:
        for name, shape in {"chunk": (batch, n, 3), "cache": (batch, m), "mask": (batch, n + m)}.items():
            assert all(a <= b <= c for a, b, c in zip(found[name].min, shape, found[name].max, strict=True))
            assert all(a <= b <= c for a, b, c in zip(*found[name], strict=True))
    assert {three.min[0] for three in found.values()} == {1}


@pytest.mark.parametrize(
    ("law", "rows"),
    [
        (lambda h, w: h * w // 4, [(4, 20), (8, 10), (12, 4), (6, 6)]),  # patches of a picture
        (lambda h, w: h + w + 3, [(4, 20), (8, 10), (12, 4)]),
        (lambda h, w: 2 * h, [(4, 20), (8, 10), (12, 4)]),
        (lambda h, w: h // 4 + w, [(15, 20), (9, 30), (61, 4), (30, 10)]),  # no simple rule: rounded down
    ],
)
def test_multiples_products_and_what_is_rounded_keep_together(law: object, rows: Sequence[tuple[int, int]]) -> None:
    inputs: Inputs = {"x": (F32, ("h", "w")), "y": (F32, ("p",))}

    def misfit(shapes: Shapes) -> str:
        return "" if law(*shapes["x"]) == shapes["y"][0] else "no"  # type: ignore[operator]

    given = seen(*({"x": (h, w), "y": (law(h, w),)} for h, w in rows))  # type: ignore[operator]
    found = profiles.consistent(given, inputs, NO_BATCH, misfit)
    for end in range(3):
        assert misfit({name: three[end] for name, three in found.items()}) == ""
    assert (found["x"].min, found["x"].max) == tuple(
        tuple(pick(row[at] for row in rows) for at in (0, 1)) for pick in (min, max)
    )


def test_axes_that_are_always_equal_move_together() -> None:
    inputs: Inputs = {"k": (F32, (None, 3)), "v": (F32, (None, 3)), "q": (F32, (None, 3)), "mask": (F32, (None,))}
    sizes = [(64, 0), (16, 80), (8, 136)]
    given = seen(*({"k": (m, 3), "v": (m, 3), "q": (n, 3), "mask": (n + m,)} for n, m in sizes))

    def misfit(shapes: Shapes) -> str:
        sums = {shapes["k"][0] + shapes["q"][0], shapes["v"][0] + shapes["q"][0], shapes["mask"][0]}
        return "" if len(sums) == 1 else "no"

    found = profiles.consistent(given, inputs, NO_BATCH, misfit)
    assert (found["mask"].min, found["mask"].max) == ((8,), (200,))


def test_where_nothing_fits_the_error_speaks_of_shapes() -> None:
    inputs: Inputs = {"x": (F32, ("a",)), "y": (F32, ("b",))}
    given = seen(*({"x": (n,), "y": (100 - n,)} for n in (10, 30, 70)))
    with pytest.raises(DataError, match=r"smallest sizes .*'x' 10, 'y' 30.* do not fit .*10 \+ 30.*--shapes"):
        profiles.consistent(
            given, inputs, NO_BATCH, lambda shapes: "" if shapes["x"][0] + shapes["y"][0] == 100 else "10 + 30"
        )


def test_shapes_that_a_feed_had_are_not_asked_for() -> None:
    asked: list[Shapes] = []

    def misfit(shapes: Shapes) -> str:
        asked.append(shapes)
        return ""

    axes = BatchAxes(dict.fromkeys(LINKED, 0))
    profiles.consistent(linked((4, 4), (8, 8), batch=3), LINKED, axes, misfit)  # but for the batch
    assert asked == []
    profiles.consistent(linked((4, 8), (8, 4)), LINKED, axes, misfit)
    assert [one["chunk"] for one in asked] == [(1, 4, 3), (1, 8, 3)]


def test_inputs_without_a_free_axis_and_those_that_come_and_go_have_no_profile() -> None:
    inputs: Inputs = {"x": (F32, (None, 4)), "w": (F32, (2,)), "o": (None, None), "s": (F32, (None,))}
    given = seen({"x": (3, 4), "w": (2,), "o": (7,)}, {"x": (5, 4), "w": (2,), "o": (7,), "s": (1,)})
    assert profiles.consistent(given, inputs, NO_BATCH, ANYTHING) == {"x": InputShapes((3, 4), (3, 4), (5, 4))}


def test_many_axes_are_no_endless_search() -> None:
    names = [f"x{at}" for at in range(9)]
    inputs: Inputs = dict.fromkeys(names, (F32, (None,)))
    rows = itertools.islice(itertools.permutations(range(1, 10)), 40)
    given = seen(*({name: (size,) for name, size in zip(names, row, strict=True)} for row in rows))
    asked: list[Shapes] = []

    def never(shapes: Shapes) -> str:
        asked.append(shapes)
        return "no"

    with pytest.raises(DataError):
        profiles.consistent(given, inputs, NO_BATCH, never)
    assert len(asked) <= 1 + 2 * profiles.MOST_TRIALS
