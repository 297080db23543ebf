"""What is said about the machine."""

from __future__ import annotations

from qcompiler.support.machine import available_processors


def test_processors_are_those_of_this_process() -> None:
    assert available_processors() >= 1
