"""Real processes: results in order, errors as they are, and a process that dies costs its item only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.workers.processes import Processes
from qcompiler.errors import DataError, UsageError
from tests.kit.support.alive import alive


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


PARENT = """
import sys, time
from pathlib import Path
from qcompiler.compiler.workers.processes import Processes
from tests.compiler.workers.test_processes import waiting
if __name__ == "__main__":
    processes = Processes(2)
    try:
        list(processes.each(waiting, (Path(sys.argv[1]),), range(2)))
    finally:
        processes.close()
"""


def waiting(marks: Path) -> Callable[[int], int]:
    """Says under which number it works, and never ends."""

    def wait(item: int) -> int:
        (marks / f"{item}.draft").write_text(str(os.getpid()))
        (marks / f"{item}.draft").rename(marks / str(item))
        time.sleep(600)
        return item

    return wait


def _at_work(tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process whose two workers are at their items, and their numbers."""
    for name in ("temporary", "marks"):
        (tmp_path / name).mkdir()
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "marks")],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 120
    marks = [tmp_path / "marks" / str(item) for item in range(2)]
    while not all(mark.exists() for mark in marks):
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    return parent, [int(mark.read_text()) for mark in marks]


def _gone(numbers: Iterable[int]) -> None:
    limit = time.monotonic() + 60
    for number in numbers:
        while alive(number):
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_workers_of_a_process_that_is_killed_end_and_what_it_left_goes_with_the_next(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, workers = _at_work(tmp_path)
    parent.kill()
    parent.communicate()
    _gone(workers)
    assert list((tmp_path / "temporary").iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert list(processes.each(adding, (WEIGHTS, tmp_path), [1])) == [100_001.0]
    assert not list((tmp_path / "temporary").iterdir())


def test_ctrl_c_ends_workers_at_once_and_only_the_one_who_asked_speaks(tmp_path: Path) -> None:
    parent, workers = _at_work(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    _, said = parent.communicate(timeout=60)
    _gone(workers)
    assert not list((tmp_path / "temporary").iterdir())
    assert said.count("Traceback") == 1
