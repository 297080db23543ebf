"""Index arrays: channels followed backwards through views, and classes of ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.passes.absorb.index import NONE, along, before_view, compact, groups

# --- Index arrays ---


@pytest.mark.parametrize(
    ("before", "after", "index", "expected"),
    [
        ((2, 5, 24), (2, 5, 6, 4), (1, 1, 6, 4), (1, 1, 24)),
        ((2, 5, 6, 4), (2, 5, 24), (1, 1, 24), (1, 1, 6, 4)),
        (("b", "s", "open", 4), ("b", "s", 24), (1, 1, 24), (1, 1, 6, 4)),
        (("a", "b", 24), ("c", "d", None, 4), (1, 1, 6, 4), (1, 1, 24)),
        (("n", 2, 3, "s", 4), ("m", 6, "s", 4), (1, 6, 1, 4), (1, 2, 3, 1, 4)),
        (("n", 6, "h", "w"), ("n", 6, None), (1, 6, 1), (1, 6, 1, 1)),
        (("n", 6, 1, 1), ("n", 6), (1, 6), (1, 6, 1, 1)),
        (("n", "c"), ("n", 6, 4), (1, 6, 4), (1, 24)),
        (("n", 6, "h", "w"), (None, 6, None), (1, 6, 1), None),
        (("a", 2, 3, "c", 4), ("b", 6, "s", 4), (1, 6, 1, 4), (1, 2, 3, 1, 4)),
        (("n", 6, "k"), ("n", 6), (1, 6), None),
        ((2, 12), (3, 8), (1, 8), (2, 12)),
        (("n", 12), (None, 8), (1, 8), None),
    ],
)
def test_channels_before_a_reshape(before: Any, after: Any, index: Any, expected: Any) -> None:
    node = gs.Node("Reshape", "reshape")
    channels = np.arange(np.prod(index)).reshape(index)
    found = before_view(node, channels, before, after)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.shape == expected
        full = np.broadcast_to(channels, [length if length > 1 else 1 for length in channels.shape]).reshape(-1)
        assert found.reshape(-1).tolist() == np.resize(full, found.size).tolist()


def test_an_index_is_as_small_as_it_can_be() -> None:
    assert compact(np.broadcast_to(along(1, np.arange(3), 3), (2, 3, 4))).shape == (1, 3, 1)


def test_classes_of_ties() -> None:
    assert groups(5, [(np.array([0, 3]), np.array([4, 3])), (np.array([[4]]), np.array([[1]]))]).tolist() == [
        0,
        0,
        1,
        2,
        0,
    ]
    assert NONE < 0
