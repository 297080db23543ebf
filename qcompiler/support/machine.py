"""The machine: processors, memory, versions of what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

_DISTRIBUTIONS: Final = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime-gpu",
    "onnxruntime",
    "polygraphy",
    "tensorrt-rtx",
    "tensorrt",
)


def environment() -> dict[str, Any]:
    """Versions of Python and of the libraries that are installed, without importing them, and the processor."""
    found = {name: version for name in _DISTRIBUTIONS if (version := version_of(name))}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        **found,
    }


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far in MiB; None on systems that do not tell."""
    if sys.platform == "win32":
        return None
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def memory_in_use() -> int:
    """Resident memory of this process in bytes: now where the system tells, else the largest so far; 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return int((peak_memory_mb() or 0.0) * (1 << 20))
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take before the system, or the container it runs in, ends it.

    Args:
        root: where the system's files are looked for.

    Returns:
        The smallest of what the machine has left and what each group of processes around this one is allowed; None
        where nobody tells.
    """
    found = [_machine_memory(root / "proc/meminfo"), *_group_memory(root)]
    known = [one for one in found if one is not None]
    return max(min(known), 0) if known else None


def _machine_memory(path: Path) -> int | None:
    """What the kernel calls available: free, or held for files only."""
    for line in _text(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _group_memory(root: Path) -> Iterator[int | None]:
    """What the limits of control groups leave, of both versions, from the group of this process outwards."""
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, own = (*line.split(":", 2), "", "")[:3]
        if kinds == "":
            yield from _left(groups, own, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(groups / "memory", own, *names)


def _left(groups: Path, own: str, limit: str, used: str, freed: str) -> Iterator[int | None]:
    here = PurePosixPath(own.strip("/"))
    for one in (
        here,
        *here.parents,
    ):  # inside a container the path may be that of the host: then only the root is there
        folder = groups / one
        allowed, taken = _number(folder / limit), _number(folder / used)
        if allowed is None or taken is None:
            continue
        stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
        yield allowed - taken + int(stat.get(freed, "0"))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # `max` is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    """qcompiler's own version, also where it was not installed."""
    from qcompiler._version import __version__

    return __version__


def available_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
