"""The table of alphas: figures are those of the manifests, and `auto` is held against the best of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.outliers import alphas
from benchmarks.outliers.alphas import ALPHAS, Reached, behind, main, row
from tests.kit.cases import transformer

VIEW = {"judged": True, "sqnr_db": 30.0, "varying_db": 24.0, "perplexity": None}


def test_the_worst_figure_of_what_is_judged_counts() -> None:
    views = [VIEW, {**VIEW, "varying_db": None, "perplexity": 0.02}, {**VIEW, "judged": False, "sqnr_db": 1.0}]
    assert Reached.of({"verification": {"views": views}}) == Reached(24.0, 0.02)
    assert Reached.of({"verification": {"views": [VIEW]}}) == Reached(24.0)
    with pytest.raises(ValueError, match="no view"):
        Reached.of({"verification": {"views": [{**VIEW, "judged": False}]}})


def test_auto_is_held_against_the_best_of_the_others() -> None:
    found = {alpha: Reached(10.0 + at) for at, alpha in enumerate(ALPHAS)}
    assert behind(found) == -1
    found["auto"] = Reached(12.25, 0.0123)
    assert behind(found) == 1.75
    assert row("m", found) == "| m | 10.0 | 11.0 | 12.0 | 13.0 | 14.0 | 12.2 (+1.23%) | -1.8 |"


def test_every_alpha_is_compiled_for_a_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alphas, "ALPHAS", ("off", "auto"))
    onnx.save(transformer(), tmp_path / "block.onnx")
    rows = np.random.default_rng(0).standard_normal((12, 16, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows)
    assert main([f"{tmp_path / 'block.onnx'}={tmp_path / 'data.npz'}"]) in (0, 1)
    head, rule, found = capfd.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == found.count("|") == 5
    assert all(float(cell) for cell in found.split("|")[2:-2])
