"""Where results are kept: by the environment or the caller, and not where anybody may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qcompiler.compiler.kept import opened as kept
from qcompiler.errors import UsageError


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "there"))
    store = kept.store_of()
    assert store is not None
    assert store.root.parent == tmp_path / "there"
    assert not store.root.exists()  # asking makes nothing


def test_without_it_the_users_folder_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCOMPILER_CACHE")
    store = kept.store_of()
    assert store is not None
    assert "qcompiler" in store.root.parent.parts[-2:] or "qcompiler" in str(store.root.parent)
    assert store.limit == kept.DEFAULT_LIMIT


@pytest.mark.parametrize("word", ["off", "OFF", "0", "none"])
def test_it_can_be_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", word)
    assert kept.store_of() is None
    assert kept.opened(True, pytest.fail) is None


def test_the_caller_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "a"))
    assert kept.store_of(False) is None
    store = kept.store_of(tmp_path / "b")
    assert store is not None
    assert store.root.parent == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("500MB", 5 * 10**8), ("2 GB", 2 * 10**9), ("1.5g", 15 * 10**8), ("1TiB", 10**12)],
)
def test_the_limit_is_written_as_people_write_sizes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE_SIZE", text)
    assert kept.limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "10 apples"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE_SIZE", text)
    with pytest.raises(UsageError, match="QCOMPILER_CACHE_SIZE"):
        kept.limit()


def test_a_folder_that_anybody_may_write_to_is_not_used(tmp_path: Path) -> None:
    told: list[str] = []
    tmp_path.chmod(0o777)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1").chmod(0o777)
    assert kept.opened(tmp_path, told.append) is None
    assert len(told) == 1
    assert "chmod o-w" in told[0]


@pytest.mark.skipif(os.name == "nt", reason="no such owners there")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: own + 1 if own else 1)
    expected = "" if own == 0 else "belongs to another user"  # root may change everything anyhow
    assert kept.refused(tmp_path).find(expected) >= 0
    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert kept.refused(tmp_path) == ""
