"""The table of estimates beside what came: factors are the same whichever way an estimate was wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.estimate import Told, figures, main, row
from tests.kit.cases import transformer

MANIFEST = {
    "estimate": {"seconds": 40.0, "memory_bytes": 300_000_000, "disk_bytes": 8_000_000},
    "timings": {"load": 1.0, "observe": 19.0},
    "peak_memory_mb": 200.0,
}


def test_factors_are_the_same_whichever_way_it_was_wrong() -> None:
    assert Told(40, 20).factor == Told(20, 40).factor == 2
    assert Told(3, 0).factor == float("inf")


def test_figures_are_those_of_the_manifest_and_the_files() -> None:
    seconds, memory, disk = figures(MANIFEST, 4_000_000)
    assert seconds == Told(40, 20)
    assert memory.told == 300
    assert memory.came == pytest.approx(209.7152)
    assert disk == Told(8, 4)
    assert row("m", (seconds, memory, disk)) == "| m | 40 | 20 | 2.00 | 300 | 210 | 1.43 | 8 | 4 | 2.00 |"


def test_a_model_is_compiled_for_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(transformer(), tmp_path / "block.onnx")
    rows = np.random.default_rng(0).standard_normal((12, 16, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows)
    assert main([f"{tmp_path / 'block.onnx'}={tmp_path / 'data.npz'}"]) in (0, 1)  # by the clock of the machine
    head, rule, found = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == found.count("|") == 11
    assert found.startswith("| block | ")
