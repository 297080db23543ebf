"""What lies in the store, as plain data."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from qcompiler.compiler.kept.store import KeptFile, Store

ARRAYS = "arrays"


def shown(store: Store) -> dict[str, Any]:
    """Folder, bytes, limit, and what there is of each stage.

    Returns:
        `folder`, `bytes`, `limit`, and `stages`: rows of `name` (of a stage, or `arrays` for what all of them share),
        `results`, `bytes` and `used` (when one was used last, ISO 8601, UTC), those used last first.
    """
    groups: dict[str, list[KeptFile]] = defaultdict(list)
    for one in store.files():
        groups[ARRAYS if one.kind == "blobs" else one.path.name.partition("-")[2]].append(one)
    last = sorted(groups.items(), key=lambda item: (-max(one.used for one in item[1]), item[0]))
    rows = [
        {
            "name": name,
            "results": len(found),
            "bytes": sum(one.size for one in found),
            "used": datetime.fromtimestamp(max(one.used for one in found), UTC).isoformat(timespec="seconds"),
        }
        for name, found in last
    ]
    return {
        "folder": str(store.root.parent),
        "bytes": sum(row["bytes"] for row in rows),
        "limit": store.limit,
        "stages": rows,
    }
