"""What lies in the store, told by stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qcompiler.compiler.kept.shown import ARRAYS, shown
from qcompiler.compiler.kept.store import Store


def test_each_stage_has_a_row_and_arrays_have_one(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    store.put_entry("aa11-observe", bytes(100))
    store.put_entry("bb22-observe", bytes(100))
    store.put_entry("cc33-observe.look", bytes(50))
    store.put_blob("dd44", np.zeros(250, np.float32))
    found = shown(store)
    rows = {row["name"]: (row["results"], row["bytes"]) for row in found["stages"]}
    assert rows == {"observe": (2, 264), "observe.look": (1, 82), ARRAYS: (1, 1000)}
    assert found["bytes"] == 1346
    assert found["limit"] == 1 << 20
    assert found["folder"] == str(tmp_path)


def test_nothing_is_told_of_nothing(tmp_path: Path) -> None:
    assert shown(Store(tmp_path, 5))["stages"] == []
