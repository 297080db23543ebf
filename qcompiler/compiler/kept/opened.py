"""Where results are kept, and how much of them: by the environment, or as the caller says."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from qcompiler.compiler.kept.results import Results
from qcompiler.compiler.kept.store import Store
from qcompiler.errors import UsageError
from qcompiler.support.sizes import parse_size

FOLDER: Final = "QCOMPILER_CACHE"
LIMIT: Final = "QCOMPILER_CACHE_SIZE"
DEFAULT_LIMIT: Final = 20 * 10**9  # bytes; a compilation of a model of 100 MB keeps some 0.5 GB
_OFF: Final = ("off", "0", "no", "none")


def opened(cache: str | Path | bool, warn: Callable[[str], None]) -> Results | None:
    """The results of earlier compilations.

    Args:
        cache: a folder; True for the usual one; False for none.
        warn: told what is wrong with it.

    Returns:
        None where nothing is to be kept.

    Raises:
        UsageError: the environment says how much in a way that cannot be read.
    """
    store = store_of(cache)
    if store is None:
        return None
    why = refused(store.root)
    if why:
        warn(f"results are not kept in '{store.root}': {why}")
        return None
    return Results(store, warn)


def store_of(cache: str | Path | bool = True) -> Store | None:
    """The store; None where there is none. Arguments and errors as of `opened`."""
    named = os.environ.get(FOLDER, "").strip()
    if cache is False or (cache is True and named.lower() in _OFF):
        return None
    root = Path(cache) if not isinstance(cache, bool) else Path(named) if named else user_cache_path("qcompiler")
    return Store(root.expanduser(), limit())


def limit() -> int:
    """Bytes that the store may take.

    Raises:
        UsageError: it is written in a way that cannot be read.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return DEFAULT_LIMIT
    found = parse_size(text)
    if found is None:
        raise UsageError(f"{LIMIT} is '{text}', which is no size: write a number of bytes, or 500MB, 20GB")
    return found


def refused(root: Path) -> str:
    """Why a folder is not used; empty where it may be, or is not there yet."""
    try:
        found = root.stat()
    except OSError:
        return ""
    if os.name == "nt":
        return ""
    if found.st_mode & stat.S_IWOTH:
        return "everybody may write there, so anybody could change results; take that right away with chmod o-w"
    if os.geteuid() not in (0, found.st_uid) and found.st_uid != 0:
        return f"it belongs to another user (uid {found.st_uid}), who could change results; choose another folder"
    return ""
