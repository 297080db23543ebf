"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qcompiler.errors import UsageError
from qcompiler.support.atomic import Artefacts, check_writable, staged, write_text


def test_a_set_of_files_appears_together(tmp_path: Path) -> None:
    with Artefacts() as files:
        files.write_text(tmp_path / "new" / "a.txt", "ä")
        files.stage(tmp_path / "b.bin").write_bytes(b"b")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf8") == "ä"
    assert (tmp_path / "b.bin").read_bytes() == b"b"
    assert len(list(tmp_path.rglob("*"))) == 3


def replace_and_fail(path: Path, error: type[BaseException]) -> None:
    with Artefacts() as files:
        files.write_text(path, "new")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_the_folder_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error):
        replace_and_fail(tmp_path / "a.txt", error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(UsageError, match=r"cannot write 'a\.txt' in folder '.*file'"):
            call(tmp_path / "file" / "a.txt")


def test_a_name_that_is_a_folder_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UsageError, match="there is a folder of that name"):
        write_text(tmp_path / "a.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def fill(path: Path) -> None:
    with Artefacts() as files:
        files.stage(path)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_usage_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write 'a\.txt' in folder .*No space left on device"):
        fill(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_checking_whether_a_file_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_staged_file_appears_complete(tmp_path: Path) -> None:
    with staged(tmp_path / "new" / "a.engine") as draft:
        draft.write_bytes(b"plan")
        assert not (tmp_path / "new" / "a.engine").exists()
    assert (tmp_path / "new" / "a.engine").read_bytes() == b"plan"
    assert os.listdir(tmp_path / "new") == ["a.engine"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "a.engine"
    output.write_bytes(b"old")

    def fail() -> None:
        with staged(output) as draft:
            draft.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert output.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.engine"]


def test_an_unwritable_output_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "a.engine", tmp_path):
        with pytest.raises(UsageError, match="cannot write"), staged(output):
            pass


def overfill(path: Path) -> None:
    with staged(path):
        raise OSError(errno.EFBIG, "File too large")


def test_whatever_stops_the_writing_of_one_file_is_about_that_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write 'a\.engine' in folder '.*new': File too large"):
        overfill(tmp_path / "new" / "a.engine")
    assert list(tmp_path.iterdir()) == []
