"""Sizes as people write them: `500MB`, `2 GB`, a number of bytes."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(text: str) -> int | None:
    """Bytes, at least one; None for what is no size. Units are decimal, however they are written."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    return (int(float(found[1]) * _UNITS[found[2]]) or None) if found else None
