"""Runs one command in a fresh process and measures it from outside: wall time, CPU time and peak memory.

This process must stay small: Linux counts the memory of the process that starts another one into the peak that it
reports for the other. So nothing here imports numpy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers import ROOT

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
BLOCK = 512  # bytes, of what `getrusage` counts
POLL_S = 0.02
MOST_MB = 14 * 1024
MOST_S = 900.0
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "NNCF_CI": "1",  # no telemetry
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Usage:
    """What one process took.

    Attributes:
        wall_s: From its start to its end, the interpreter's start included.
        cpu_s: User and system seconds, its children included.
        peak_mb: The larger of its own peak (VmHWM) and the highest sum over its process tree that was seen.
        code: Exit code; negative: the signal that ended it.
        error: Why it was stopped from here, or "".
        written_mb: Files that it wrote, as the system counts what must go to a disk; its children included.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    code: int
    error: str = ""
    written_mb: float = 0.0


def run(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    most_s: float | None = None,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Usage:
    """Runs `command` in `folder`, stdout and stderr going to `log`; stops it over 14 GB or `most_s` seconds.

    Args:
        command: What is run.
        folder: Where, and for its temporary files.
        log: What it says.
        most_s: When it is stopped; None for `MOST_S`.
        extra: Variables of its environment.
    """
    environment = {**os.environ, **QUIET, "TMPDIR": str(folder), **extra}
    with log.open("wb") as stream:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        peak, error = 0.0, ""
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, _tree_mb(child.pid))
                error = error or _excess(peak, time.perf_counter() - started, MOST_S if most_s is None else most_s)
                if error:
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(POLL_S)
        except BaseException:  # interrupted: the child, in a session of its own, would go on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for what is gone
    own = usage.ru_maxrss / 1024  # KiB; unlike VmHWM it can still be read after the end
    written = usage.ru_oublock * BLOCK / 1e6
    return Usage(wall, usage.ru_utime + usage.ru_stime, max(peak, own), child.returncode, error, written)


def _excess(peak_mb: float, seconds: float, most_s: float) -> str:
    if peak_mb > MOST_MB:
        return f"stopped: over {MOST_MB / 1024:.0f} GB after {seconds:.0f} s"
    return f"stopped: over {most_s:.0f} s" if seconds > most_s else ""


def _tree_mb(root: int) -> float:
    """Resident memory of a process and all its descendants in MiB; those that have just ended count nothing."""
    total, waiting = 0.0, [str(root)]
    while waiting:
        process = Path("/proc") / waiting.pop()
        try:
            total += int((process / "statm").read_text().split()[1]) * PAGE_MB
            for task in (process / "task").iterdir():
                waiting += (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
