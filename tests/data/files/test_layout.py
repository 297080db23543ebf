"""What a shape says of why it does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.data.files.layout import channels_moved, fits, in_rank, order
from qcompiler.ir.signature import Shape


@pytest.mark.parametrize(
    ("shape", "wanted", "axes"),
    [
        ((1, 48, 48, 3), ("n", 3, 48, 48), (0, 3, 1, 2)),
        ((1, 3, 48, 48), ("n", 48, 48, 3), (0, 2, 3, 1)),
        ((1, 50, 60, 3), (None, 3, "h", "w"), (0, 3, 1, 2)),
        ((48, 64, 3), (3, 48, 64), (2, 0, 1)),
        ((1, 80, 300), ("n", 300, 80), (0, 2, 1)),
        ((128, 5), ("n", 128), (1, 0)),
        ((1, 50, 50, 3), ("n", 3, 48, 48), None),
        ((5,), (4,), None),
    ],
)
def test_axes_in_another_order_are_found(shape: tuple[int, ...], wanted: Shape, axes: tuple[int, ...] | None) -> None:
    assert order(shape, wanted) == axes
    if axes is not None:
        assert fits(np.empty(shape).transpose(axes).shape, wanted)


def test_channels_are_found_at_the_other_end_whatever_the_size() -> None:
    assert channels_moved((1, 50, 60, 3), ("n", 3, 48, 48)) == (0, 3, 1, 2)
    assert channels_moved((1, 3, 50, 60), ("n", 48, 48, 3)) == (0, 2, 3, 1)
    assert channels_moved((50, 60, 3), (3, 48, 48)) == (2, 0, 1)
    assert channels_moved((1, 3, 50, 60), ("n", 3, 48, 48)) is None
    assert channels_moved((1, 50, 60, 8), ("n", 3, 48, 48)) is None


@pytest.mark.parametrize(
    ("shape", "wanted", "becomes"),
    [
        ((3, 8, 8), ("n", 3, 8, 8), (1, 3, 8, 8)),
        ((3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)),
        ((3, 8, 8), (2, 3, 8, 8), (3, 8, 8)),
        ((8, 8, 3), ("n", 3, 8, 8), (8, 8, 3)),
        ((1, 3, 8, 8), (3, 8, 8), (3, 8, 8)),
        ((2, 3, 8, 8), (3, 8, 8), (2, 3, 8, 8)),
        ((1, 3, 8, 8), ("n", 3, 8, 8), (1, 3, 8, 8)),
        ((1, 3), None, (1, 3)),
    ],
)
def test_only_a_batch_axis_that_alone_is_at_fault_is_added_or_dropped(
    shape: tuple[int, ...], wanted: Shape, becomes: tuple[int, ...]
) -> None:
    assert in_rank(np.empty(shape), wanted).shape == becomes
