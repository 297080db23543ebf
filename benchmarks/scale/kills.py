"""Compiles that are ended at random moments, and what is found when they are asked again.

A moment is a share of the processor time that an undisturbed compile takes, so that other work on the machine does not
move it. Each moment begins with an empty cache and an empty output folder: the compile is started and ended by a
signal, what it left is looked at, and it is started again. The second one must end as an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import ROOT
from benchmarks.scale.artefacts import artefacts

NAME = "model"
POLL_S = 0.005
PATIENCE_S = 20.0  # until what an ended process started must be gone, too
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
_TICKS = os.sysconf("SC_CLK_TCK")
# A benchmark in the background of a shell ignores SIGINT, and would pass that on.
RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from qcompiler.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Ended:
    """What became of one moment.

    Attributes:
        moment: Share of the processor time of an undisturbed compile.
        signal: Name of what ended it.
        code: Exit code of the one that was ended, as a shell has it: 128 more than the signal. 0: it was done before.
        traceback: Whether it showed one.
        orphans: Processes that it had started and that outlived it.
        left: Files in the output folder and in that of temporary files when it was gone; all artefacts as they should
            be are nothing that is left.
        kept: Results of stages that it had kept.
        again: Exit code of the second one.
        differs: Artefacts of the second one that are not those of an undisturbed compile.
        strays: Files behind the second one that an undisturbed compile does not leave.
        reused: Stages that the second one did not run.
        cpu_s: Processor seconds of the second one.
    """

    moment: float
    signal: str
    code: int
    traceback: bool
    orphans: int
    left: tuple[str, ...]
    kept: int
    again: int
    differs: tuple[str, ...]
    strays: tuple[str, ...]
    reused: tuple[str, ...]
    cpu_s: float

    @property
    def faults(self) -> Iterator[str]:
        """What is not as it should be, in words."""
        how = signal.Signals[self.signal]
        if self.code not in (0, 128 + how):
            yield f"exit code {self.code} by {self.signal}"
        if self.traceback:
            yield "a traceback"
        if self.orphans:
            yield f"{self.orphans} processes outlived it"
        if self.left and self.code and how != signal.SIGKILL:
            yield f"left {', '.join(self.left)}"
        if self.again:
            yield f"the second one ended with {self.again}"
        if self.differs:
            yield f"differs: {', '.join(self.differs)}"
        if self.strays:
            yield f"strays: {', '.join(self.strays)}"
        if self.kept and not self.reused:
            yield f"{self.kept} results were kept and none was used"

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {**asdict(self), "faults": list(self.faults)}


def moments(count: int, seed: int) -> list[float]:
    """Shares of a run, one at a random place in each of `count` equal parts of it."""
    draw = random.Random(seed)
    return [(index + draw.random()) / count for index in range(count)]


class Killing:
    """Moments of one command.

    Args:
        flags: Of `qcompiler`, from the subcommand on, without `-o`.
        folder: For everything that is made.
        suffix: Of the output, such as `.engine`.
    """

    def __init__(self, flags: Sequence[str], folder: Path, suffix: str = ".qdq.onnx") -> None:
        self._flags, self._folder = tuple(flags), folder
        self._output = folder / "out" / f"{NAME}{suffix}"
        self._expected: Mapping[str, str] = {}
        self._running: subprocess.Popen[bytes] | None = None
        self.cpu_s = 0.0

    def undisturbed(self) -> None:
        """What the others are held against; also how long it takes: the longer of two counts.

        Raises:
            RuntimeError: it fails.
        """
        for _ in range(2):
            self._empty()
            code, cpu_s = self._wait(self._start())
            if code:
                raise RuntimeError(f"an undisturbed compile ends with {code}: {self._folder / 'log'}")
            self.cpu_s = max(self.cpu_s, cpu_s)
        self._expected = artefacts(self._output.parent)

    def ended(self, moment: float, how: signal.Signals) -> Ended:
        """Ends one at a moment and starts it again."""
        self._empty()
        process = self._start()
        code = self._end(process, moment * self.cpu_s, how)
        traceback = b"Traceback" in (self._folder / "log").read_bytes()
        orphans = self._orphans()
        whole = artefacts(self._output.parent) == self._expected  # it was done, and only had to say so
        left, kept = (
            self._strays(self._expected if whole else {}),
            len(list((self._folder / "cache").glob("v1/entries/??/*"))),
        )
        again, cpu_s = self._wait(self._start())
        found = artefacts(self._output.parent) if not again else {}
        differs = tuple(name for name, content in self._expected.items() if found.get(name) != content)
        reused: tuple[str, ...] = ()
        if not again:
            reused = tuple(json.loads((self._output.parent / f"{NAME}.manifest.json").read_text("utf8"))["reused"])
        strays = self._strays(self._expected)
        return Ended(
            moment, how.name, code, traceback, orphans, left, kept, again, differs, strays, reused, round(cpu_s, 2)
        )

    def _empty(self) -> None:
        for name in ("out", "cache", "temporary"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).mkdir(parents=True, mode=0o700)
        (self._folder / "log").write_bytes(b"")

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "QCOMPILER_CACHE": str(self._folder / "cache"),
            "TMPDIR": str(self._folder / "temporary"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", RUN, *self._flags, "-o", str(self._output), "--quiet"]
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._running = process
        return process

    def close(self) -> None:
        """Ends what runs: it is in a session of its own, and would go on."""
        if self._running is not None and self._running.poll() is None:
            self._running.kill()
            self._running.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Exit code and processor seconds, those of what it started and waited for included."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def _end(self, process: subprocess.Popen[bytes], cpu_s: float, how: signal.Signals) -> int:
        while process.poll() is None and spent(process.pid) < cpu_s:
            time.sleep(POLL_S)
        if process.poll() is None:
            process.send_signal(how)
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _orphans(self) -> int:
        """How many processes that it started are left when they were given time; they are ended."""
        limit = time.monotonic() + PATIENCE_S
        while (found := started_with(f"TMPDIR={self._folder / 'temporary'}")) and time.monotonic() < limit:
            time.sleep(0.1)
        for one in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        return len(found)

    def _strays(self, expected: Mapping[str, str]) -> tuple[str, ...]:
        """Files and folders in those of the output and of temporary files that are not expected there."""
        out, temporary = self._output.parent, self._folder / "temporary"
        found = [path.name for path in out.iterdir() if path.name not in expected] if out.exists() else []
        return tuple(sorted(found + [f"{path.name} (temporary)" for path in temporary.iterdir()]))


def spent(process: int) -> float:
    """Processor seconds of a process and of all that it has started; 0 when it is gone."""
    total, waiting = 0, [str(process)]
    while waiting:
        path = Path("/proc") / waiting.pop()
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            total += sum(int(value) for value in fields[11:15])  # its own, and of children that it waited for
            for task in (path / "task").iterdir():
                waiting += (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / _TICKS


def started_with(variable: str) -> list[int]:
    """Processes that are alive and have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
