"""Ctrl-C and termination: both end a run in order, and neither falls between two steps that belong together.

Python raises KeyboardInterrupt for SIGINT between any two instructions, and dies of SIGTERM where it stands. Here
SIGTERM is raised like the other, so that what was begun is cleared away, and `unbroken` holds both back for a moment.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from types import FrameType
from typing import Final, NoReturn

WRITTEN: Final = "by then everything was written"


class Terminated(KeyboardInterrupt):
    """SIGTERM, from the system or from whoever runs the machine."""


@contextmanager
def terminated() -> Iterator[None]:
    """In the block, SIGTERM raises `Terminated` in the main thread; a handler of the caller's own stays."""
    if not _main() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def unbroken(said: str = "") -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the end of the block, which must be short.

    Args:
        said: the text of the KeyboardInterrupt that is raised at the end.

    Raises:
        KeyboardInterrupt: one came, and Python would have raised it.
    """
    if not _main():  # only the main thread is interrupted
        yield
        return
    came: list[type[KeyboardInterrupt]] = []
    known = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _raise}
    held = [number for number, handler in known.items() if signal.getsignal(number) is handler]
    for number in held:
        signal.signal(number, lambda given, _: came.append(_kind(given)))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, known[number])
    if came:
        raise came[0](said)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes that are started in the block never see SIGINT: Ctrl-C reaches all of them, and one has the say."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is blocked stays so in what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this process, which multiprocessing started, as soon as the one that started it is gone, however it went."""
    parent = parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _kind(number: int) -> type[KeyboardInterrupt]:
    return Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
