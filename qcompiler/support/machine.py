"""The machine: processors, memory, versions of what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
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
