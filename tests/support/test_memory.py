"""What is put down reads back equal, is gone with its array, and pages are given back while a block works in little."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from qcompiler.errors import UsageError
from qcompiler.support import memory

LARGE = np.arange(memory.SMALLEST, dtype=np.float32)


def files_in(folder: Path) -> int:
    """How many files of a folder this process has open, whether or not they have a name."""
    count = 0
    for one in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            count += os.readlink(f"/proc/self/fd/{one}").startswith(str(folder))
    return count


def test_without_a_limit_nothing_is_tight_and_nothing_is_put_down(tmp_path: Path) -> None:
    with memory.limited(1 << 30, tmp_path):
        assert not memory.weigh(100 << 20)
        assert memory.room().piece is None
        assert memory.put_down(LARGE) is LARGE
    assert memory.room() == memory.Room()


def test_what_is_put_down_is_the_same_read_only_and_has_no_name(tmp_path: Path) -> None:
    with memory.limited(8 << 20, tmp_path):
        assert memory.weigh(LARGE.nbytes)
        assert memory.room().piece == 1 << 20
        found = memory.put_down(LARGE.reshape(4, -1).T)
        np.testing.assert_array_equal(found, LARGE.reshape(4, -1).T)
        assert memory.put_down(found) is found
        assert memory.put_down(LARGE[:10]).base is LARGE
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1
        assert not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_the_room_on_disk_is_free_again_when_nobody_looks(tmp_path: Path) -> None:
    with memory.limited(8 << 20, tmp_path):
        memory.weigh(LARGE.nbytes)
        found = [memory.put_down(LARGE + at) for at in range(3)]
        assert files_in(tmp_path) == 3
        del found
        gc.collect()
        assert files_in(tmp_path) == 0


def test_a_folder_that_takes_nothing_is_named_with_what_helps(tmp_path: Path) -> None:
    with memory.limited(8 << 20, tmp_path / "none"):
        memory.weigh(LARGE.nbytes)
        with pytest.raises(UsageError, match=r"cannot be put down in '.*none'.*--max-memory"):
            memory.put_down(LARGE)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell what is in memory")
def test_pages_of_mapped_files_are_given_back_while_somebody_reads(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    np.zeros(64 << 20, np.uint8).tofile(path)
    with memory.limited(64 << 20, tmp_path):
        memory.weigh(64 << 20)  # pieces of 8 MiB, twice that may stand there
        time.sleep(5 * memory._EVERY)
        mapped = memory.noted(np.memmap(path, np.uint8, "r"))
        before = memory._in_memory()
        assert int(mapped.sum()) == 0
        deadline = time.monotonic() + 60
        while memory._in_memory() - before > 16 << 20 and time.monotonic() < deadline:
            time.sleep(memory._EVERY)
        assert memory._in_memory() - before <= 16 << 20
        assert int(mapped.sum()) == 0


def test_what_is_free_is_the_limit_where_nobody_gives_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with memory.limited(None, tmp_path):
        assert memory.room().limit == 900
        assert memory.weigh(226)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    with memory.limited(None, tmp_path):
        assert not memory.weigh(1 << 50)


def test_two_compilations_at_once_have_rooms_of_their_own(tmp_path: Path) -> None:
    seen: list[memory.Room] = []

    def other() -> None:
        with memory.limited(64 << 20, tmp_path):
            seen.append(memory.room())

    with memory.limited(8 << 20, tmp_path):
        memory.weigh(8 << 20)
        one = threading.Thread(target=other)
        one.start()
        one.join()
        assert memory.room().tight
    assert [(one.limit, one.tight) for one in seen] == [(64 << 20, False)]


def test_another_process_works_as_the_one_that_asks_it(tmp_path: Path) -> None:
    with memory.tight(None, tmp_path):
        assert not memory.room().tight
    with memory.tight(80, tmp_path):
        assert memory.room().piece == 10


def test_pages_are_given_back_by_whoever_reads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[int] = []
    read: list[float] = []
    monkeypatch.setattr(memory, "_drop_pages", lambda: dropped.append(len(read)))
    monkeypatch.setattr(memory, "_EVERY", 3600)
    memory.looked_at(100 << 20)
    with memory.limited(80 << 20, tmp_path):
        memory.weigh(80 << 20)  # pieces of 10 MiB
        for size in (4, 4, 4, 0.5, 12):
            memory.looked_at(int(size * (1 << 20)))
            read.append(size)
    assert dropped == [2, 4]
