"""Sizes as people write them."""

from __future__ import annotations

import pytest

from qcompiler.support.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("500MB", 5 * 10**8), ("2 GB", 2 * 10**9), ("1.5g", 15 * 10**8), ("1TiB", 10**12), (" 3k ", 3000)],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "10 apples", "0", "0GB", "GB"])
def test_no_size(text: str) -> None:
    assert parse_size(text) is None
