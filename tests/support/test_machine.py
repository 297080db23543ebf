"""What is said about the machine: versions as they are installed, as plain data."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler import __version__
from qcompiler.support import machine
from qcompiler.support.machine import available_processors, environment, own_version, peak_memory_mb, version_of


def test_processors_are_those_of_this_process() -> None:
    assert available_processors() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound to processors here")
def test_processors_that_others_have_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_versions_are_those_of_what_is_installed() -> None:
    found = environment()
    assert (found["python"], found["numpy"], found["onnx"]) == (
        platform.python_version(),
        np.__version__,
        onnx.__version__,
    )
    assert json.loads(json.dumps(found)) == found


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of("no-such-distribution") is None
    monkeypatch.setattr(machine, "_DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    assert list(environment()) == ["python", "system", "processors", "numpy"]


def test_the_version_is_that_of_the_package() -> None:
    assert own_version() == __version__


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell it in another way")
def test_the_peak_of_memory_is_in_mebibytes() -> None:
    block = np.ones(4 << 20)
    peak = peak_memory_mb()
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told is not None
    assert peak == pytest.approx(int(told[1]) / 1024, rel=0.05)
    assert peak is not None
    assert peak > block.nbytes / (1 << 20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell it in this way")
def test_memory_in_use_is_no_more_than_the_peak() -> None:
    peak = peak_memory_mb()
    assert peak is not None
    assert 1 << 20 < machine.memory_in_use() <= (peak + 1) * (1 << 20)


def _system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n"}


def test_memory_that_nobody_limits_is_that_of_the_machine(tmp_path: Path) -> None:
    assert machine.available_memory(_system(tmp_path, MEMINFO)) == 4000 << 10


def test_a_container_has_what_its_groups_leave(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/jobs/one\n",
        "sys/fs/cgroup/jobs/one/memory.max": "max\n",
        "sys/fs/cgroup/jobs/one/memory.current": "70000\n",
        "sys/fs/cgroup/jobs/memory.max": "900000\n",
        "sys/fs/cgroup/jobs/memory.current": "300000\n",
        "sys/fs/cgroup/jobs/memory.stat": "anon 1\ninactive_file 50000\n",
    }
    assert machine.available_memory(_system(tmp_path, MEMINFO | files)) == 900000 - 300000 + 50000


def test_groups_of_the_first_version_are_asked_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/somewhere/else\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "500000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "700000\n",
    }
    assert machine.available_memory(_system(tmp_path, MEMINFO | files)) == 0


def test_a_system_that_tells_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path) is None
