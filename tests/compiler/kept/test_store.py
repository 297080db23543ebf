"""Files by their content: complete or not there, each once, the least used first to go."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.kept.store import Store
from qcompiler.support import held

DAY = 86400.0


def aged(store: Store, **days: float) -> None:
    """Makes entries older, by name."""
    for one in store.files():
        for name, age in days.items():
            if one.path.name == name:
                os.utime(one.path, (one.used - age * DAY, one.used - age * DAY))


def test_what_was_put_is_there_for_another_store_of_the_same_folder(tmp_path: Path) -> None:
    Store(tmp_path, 1 << 20).put_entry("aabb", b"content")
    Store(tmp_path, 1 << 20).put_blob("ccdd", np.arange(6, dtype=np.float32).reshape(2, 3))
    again = Store(tmp_path, 1 << 20)
    assert again.entry("aabb") == b"content"
    found = again.blob("ccdd")
    assert found is not None
    assert found.view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert again.entry("ccdd") is None
    assert again.blob("aabb") is None


def test_a_large_blob_is_mapped_and_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    store, values = Store(tmp_path, 1 << 30), np.arange(1 << 19, dtype=np.float32)
    store.put_blob("ab", values)
    found = store.blob("ab")
    store.clear()
    assert found is not None
    assert not found.flags.writeable
    assert np.array_equal(found.view(np.float32), values)
    assert store.blob("ab") is None


@pytest.mark.parametrize("place", [0, 40])  # in the hash, in what it is of
def test_an_entry_that_was_changed_is_told_from_one_that_was_not(tmp_path: Path, place: int) -> None:
    store = Store(tmp_path, 1 << 20)
    store.put_entry("aabb", b"something of some length")
    [file] = store.files()
    content = bytearray(file.path.read_bytes())
    content[place] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        store.entry("aabb")
    file.path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        store.entry("aabb")


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    for name in ("old", "older", "young"):
        store.put_entry(name, bytes(1000))
    aged(store, old=2, older=3)
    store.entry("older")  # used now
    store.make_room(2100)
    assert {one.path.name for one in store.files()} == {"older", "young"}


def test_room_is_made_while_writing(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000)
    for index in range(50):
        store.put_entry(f"n{index:02}", bytes(900))
    assert sum(one.size for one in store.files()) <= 10_000
    assert store.entry("n49") is not None


def test_drafts_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    store.put_entry("aa", b"1")
    drafts = store.root / "drafts"
    for name in ("killed", "running"):
        (drafts / name).write_bytes(b"half")
    handle = held.hold(drafts / "running", held.FILE)
    store.make_room(1 << 20)
    assert [path.name for path in drafts.iterdir()] == ["running"]
    assert store.entry("aa") == b"1"
    assert handle is not None
    os.close(handle)


def test_where_files_cannot_be_locked_drafts_go_by_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "fcntl", None)
    store = Store(tmp_path, 1 << 20)
    store.put_entry("aa", b"1")
    drafts = store.root / "drafts"
    for name, age in (("killed", 1.0), ("running", 0.0)):
        (drafts / name).write_bytes(b"half")
        then = (drafts / name).stat().st_mtime - age * DAY
        os.utime(drafts / name, (then, then))
    store.make_room(1 << 20)
    assert [path.name for path in drafts.iterdir()] == ["running"]


def test_others_may_not_look_into_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", 1 << 20)
    store.put_entry("aa", b"1")
    assert store.root.stat().st_mode & 0o077 == 0


def test_an_empty_store_is_cleared_without_a_word(tmp_path: Path) -> None:
    assert Store(tmp_path / "nowhere", 1).clear() == 0
    assert not (tmp_path / "nowhere").exists()
