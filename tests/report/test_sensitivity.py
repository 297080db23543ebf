"""The layer study as a table and as a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qcompiler.cli.main import main
from tests.kit.tools.studied import data, perceptron, saved


def studied(tmp_path: Path, capfd: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    """The table and the page of a study of 40 samples."""
    rows = [feed["x"] for feed in data(40)]
    np.savez(tmp_path / "d.npz", x=np.concatenate(rows))
    line = ["sensitivity", str(saved(tmp_path, perceptron())), "--data", str(tmp_path / "d.npz"), "--quiet"]
    assert main([*line, "--report", str(tmp_path / "r.html"), *more]) == 0
    return " ".join(capfd.readouterr().out.split()), (tmp_path / "r.html").read_text(encoding="utf8")


def test_an_estimate_says_that_it_is_one_and_how_sure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for text in studied(tmp_path, capfd):
        assert re.search(r"an estimate from \d+ of 40 samples; rank correlation to be expected", text)
        assert "--exact runs all" in text
        assert "±: standard error of int8" in text


def test_an_exact_study_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for text in studied(tmp_path, capfd, "--exact"):
        assert "errors on all 40 samples" in text
        assert "estimate" not in text
        assert "±" not in text


def test_names_of_the_model_are_escaped_in_the_report(tmp_path: Path) -> None:
    proto = perceptron()
    proto.graph.node[0].name = "<script>alert(1)</script>"
    np.savez(tmp_path / "d.npz", x=data(1)[0]["x"])
    line = ["sensitivity", str(saved(tmp_path, proto)), "--data", str(tmp_path / "d.npz"), "--quiet"]
    assert main([*line, "--report", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
