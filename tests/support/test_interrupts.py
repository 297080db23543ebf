"""Ctrl-C and termination: raised between steps, held back inside of one, and inherited by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcompiler.support.interrupts import Terminated, ignored_by_children, terminated, unbroken
from tests.kit.support.alive import alive


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """As a program in the foreground has them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_termination_is_raised_in_the_block_only() -> None:
    with pytest.raises(Terminated), terminated():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_callers_own_stays() -> None:
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    with terminated(), unbroken():
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_step_is_done_before_it_is_raised(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    steps: list[str] = []

    def step() -> None:
        with unbroken("all of it"):
            signal.raise_signal(number)
            steps.append("the rest")

    with terminated():
        with pytest.raises(KeyboardInterrupt, match="^all of it$") as raised:
            step()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps == ["the rest"]
    assert raised.type is kind


def test_an_error_of_the_step_goes_before_what_came_meanwhile() -> None:
    def step() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        step()


def test_other_threads_are_not_interrupted_and_leave_handlers_alone() -> None:
    found: list[object] = []

    def work() -> None:
        with terminated(), unbroken():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals on this system")
def test_what_is_started_in_the_block_does_not_see_ctrl_c() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); print(1, flush=True); input()"
    command = [sys.executable, "-c", code]
    with ignored_by_children():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(b"\n")
    assert process.returncode == 0


PARENT = """
import multiprocessing, os, time
from qcompiler.support.interrupts import end_with_parent
def work(pipe):
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(600)
if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=work, args=(there,)).start()
    print(here.recv(), flush=True)
    time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    limit = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < limit
        time.sleep(0.01)
