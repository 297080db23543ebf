"""Real processes: results in order, errors as they are, and a process that dies costs its item only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.workers.processes import Processes
from qcompiler.errors import DataError, UsageError


def adding(weights: np.ndarray[tuple[int], np.dtype[np.float32]], marks: Path) -> Callable[[int], float]:
    """Adds an item to weights; item 3 kills its process the first time, item -1 is refused, item 99 always kills."""

    def add(item: int) -> float:
        mark = marks / str(item)
        if item == 99 or (item == 3 and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item < 0:
            raise DataError(f"item {item} is below zero")
        return float(weights.sum()) + item

    return add


WEIGHTS = np.ones(100_000, np.float32)


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes(2)
    yield found
    found.close()


def test_results_come_in_order_also_when_a_process_dies(processes: Processes, tmp_path: Path) -> None:
    found = list(processes.each(adding, (WEIGHTS, tmp_path), iter(range(8))))
    assert found == [100_000.0 + item for item in range(8)]
    assert (tmp_path / "3").exists()  # it did die


def test_an_error_arrives_as_it_was_raised(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item -1 is below zero"):
        list(processes.each(adding, (WEIGHTS, tmp_path), [1, -1, 2]))
    assert list(processes.each(adding, (WEIGHTS, tmp_path), [1])) == [100_001.0]


def test_an_item_that_always_kills_ends_the_work_with_a_reason(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ended 3 times .* try fewer workers"):
        list(processes.each(adding, (WEIGHTS, tmp_path), [99]))
