"""Real files of known type for magika: what is installed here, and what lies in the packages of the test cache."""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from demo import packages

LABELS = {
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".so": "elf",
    ".h": "c",
    ".json": "json",
    ".md": "markdown",
    ".rst": "rst",
    ".html": "html",
    ".css": "css",
    ".js": "javascript",
    ".svg": "svg",
    ".pdf": "pdf",
    ".png": "png",
    ".ttf": "ttf",
    ".exe": "pebin",
    ".gz": "gzip",
    ".whl": "zip",
    ".onnx": "onnx",
    ".npz": "npz",
    ".xml": "xml",
    ".csv": "csv",
}
PER_TYPE = 24
Array = np.ndarray[Any, np.dtype[Any]]


def samples(config: Path, half: int) -> tuple[Array, Array]:
    """Features int32 [files, 2048] and the class of each file; the halves 0 and 1 share no file."""
    rows, labels = _all(config)
    return rows[half::2], labels[half::2]


@cache
def _all(config: Path) -> tuple[Array, Array]:
    classes = json.loads(config.read_text(encoding="utf8"))["target_labels_space"]
    found = [(path, classes.index(LABELS[path.suffix])) for path in _files() if LABELS[path.suffix] in classes]
    order = np.random.default_rng(0).permutation(len(found))
    rows = np.stack([features(found[i][0].read_bytes()) for i in order])
    return rows, np.array([found[i][1] for i in order])


def _files() -> list[Path]:
    """At most PER_TYPE files of each type; the same ones wherever the same things are installed."""
    chosen: list[Path] = []
    for suffix in LABELS:
        fitting = (path for folder in _folders() for path in sorted(folder.rglob(f"*{suffix}")) if _fits(path))
        chosen += islice(fitting, PER_TYPE)
    return chosen


def _folders() -> list[Path]:
    """Packages that are always there, the downloaded ones, and parts of the standard library."""
    installed = ("numpy", "matplotlib", "onnx", "pip", "rich", "numba")
    specs = [find_spec(name) for name in installed]
    folders = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    library = Path(sysconfig.get_path("stdlib"))
    return [
        *folders,
        packages.cache() / "packages",
        *(library / name for name in ("json", "email", "asyncio", "idlelib")),
    ]


def _fits(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.stat().st_size >= 64


def features(content: bytes) -> Array:
    """int32 [2048]: the first and the last 1,024 bytes without white space around, padded with 256 in the middle.

    As magika 1.0.3 does: it looks at no more than 4,096 bytes at either end.
    """
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    row = np.full(2048, 256, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2048 - len(last) :] = np.frombuffer(last, np.uint8)
    return row
