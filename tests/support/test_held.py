"""Drafts of a process that is gone are removed, those of one that lives are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.support import held

WORKING = """
import pathlib, sys, time
from qcompiler.support.atomic import Artefacts
from qcompiler.support.held import workshop
here = pathlib.Path(sys.argv[1])
with workshop(here) as shop, Artefacts() as files:
    (shop / "half").write_bytes(b"x")
    files.stage(here / "model.onnx").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(600)
"""


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no such locks there: nothing is removed")
def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    from qcompiler.support.atomic import write_bytes

    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with held.workshop(tmp_path):
            write_bytes(tmp_path / "model.onnx", b"whole")
        assert len(left(tmp_path)) == 3  # it lives: folder and draft of it are still there
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held.workshop(tmp_path):
        write_bytes(tmp_path / "model.onnx", b"whole")
    assert left(tmp_path) == ["model.onnx"]


def test_a_workshop_is_gone_at_the_end_whatever_happens(tmp_path: Path) -> None:
    def fail() -> None:
        with held.workshop(tmp_path) as shop:
            (shop / "x").write_bytes(b"1")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert left(tmp_path) == []


def test_two_at_a_time_leave_each_other_alone(tmp_path: Path) -> None:
    with held.workshop(tmp_path) as one, held.workshop(tmp_path) as other:
        assert one != other
        assert one.is_dir()
        assert other.is_dir()


def test_what_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / ".qcompiler-link").symlink_to(tmp_path / "precious")
    with held.workshop(tmp_path):
        pass
    assert (tmp_path / "precious").is_dir()


def test_a_folder_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    held.sweep(tmp_path / "nowhere", "*")
    assert left(tmp_path) == []


def test_a_workshop_that_is_interrupted_while_it_is_made_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, flags: int) -> int | None:
        signal.raise_signal(signal.SIGINT)
        return real(path, flags)

    real = held.hold
    monkeypatch.setattr(held, "hold", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), held.workshop(tmp_path):
            pytest.fail("it goes on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left(tmp_path) == []
