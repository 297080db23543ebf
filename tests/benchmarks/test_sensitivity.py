"""The benchmark of `sensitivity`: ranks and the lines of its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.sensitivity.__main__ import Studied, correlation, rows, studied
from tests.kit.tools.studied import data, perceptron, saved


def told(*figures: float) -> dict[str, Any]:
    return {
        "measured": {"samples": 4, "of": 64, "rank_correlation": {"int8": None}},
        "formats": [{"format": "int8"}],
        "groups": [
            {"activation": f"t{at}", "effects": {"int8": {"outputs_db": one}}} for at, one in enumerate(figures)
        ],
    }


def test_ranks_are_correlated() -> None:
    assert correlation(told(1, 2, 3), told(10, 20, 90), "int8") == pytest.approx(1)
    assert correlation(told(1, 2, 3), told(3, 2, 1), "int8") == pytest.approx(-1)
    assert correlation(told(3, 1, 2.5, 2), told(3, 1, 2, 2), "int8") == pytest.approx(0.9486833)
    assert correlation(told(1), told(2), "int8") == 1


def test_a_line_has_the_cost_beside_the_plain_run() -> None:
    (line,) = rows("m", 2.0, Studied(told(1, 2), 5.0), Studied(told(1, 2), 30.0))
    assert line == "| m | 2 | 4 of 64 | int8 | 1.000 | – | 2.5 | 15.0 |"


def test_a_study_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    path, rows_of = saved(tmp_path, perceptron()), tmp_path / "d.npz"
    np.savez(rows_of, x=np.concatenate([feed["x"] for feed in data(4)]))
    found = studied(str(path), str(rows_of), "int8", "--exact")
    assert found.found["measured"]["samples"] == 4
    assert found.cpu_s > 0
