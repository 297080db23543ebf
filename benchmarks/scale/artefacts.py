"""What a compile leaves, so that two can be compared. Nothing here imports more than Python brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

MEASURED = frozenset({"seconds", "timings", "reused", "peak_memory_mb", "estimate"})


def settled(data: Any) -> Any:
    """What a manifest says without the times and the memory, which differ from run to run."""
    if isinstance(data, Mapping):
        return {key: settled(value) for key, value in data.items() if key not in MEASURED}
    return [settled(value) for value in data] if isinstance(data, list | tuple) else data


def artefacts(folder: Path) -> dict[str, str]:
    """Hashes of the files by name: of a manifest what is no time, of a report nothing, as it shows the manifest."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():  # of what was killed
            found[path.name] = "folder"
        elif path.name.endswith(".manifest.json"):
            content = json.dumps(settled(json.loads(path.read_text(encoding="utf8"))))
            found[path.name] = sha256(content.encode()).hexdigest()
        elif path.suffix == ".html":
            found[path.name] = ""
        else:
            with path.open("rb") as stream:
                found[path.name] = file_digest(stream, "sha256").hexdigest()
    return found
