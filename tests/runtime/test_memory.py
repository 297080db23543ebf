"""What sessions and mapped files no longer need goes back to the system."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qcompiler.runtime.memory import release_pages

RNG = np.random.default_rng(5)
W = RNG.standard_normal((32, 48)).astype(np.float32)


def test_released_pages_come_back_when_read(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", W)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r", allow_pickle=False)
    before = mapped.copy()
    release_pages([mapped, mapped[3:], W])
    np.testing.assert_array_equal(mapped, before)
