"""Whether a process is there."""

from __future__ import annotations

import os
from pathlib import Path


def alive(process: int) -> bool:
    """By its number; one that is dead and that nobody has waited for counts as gone."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone meanwhile, or a system without /proc
        return not Path("/proc/self").exists()
