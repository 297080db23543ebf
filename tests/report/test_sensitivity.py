"""The layer study as a table and as a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qcompiler.cli.main import main
from tests.kit.tools.studied import data, perceptron, saved


def test_names_of_the_model_are_escaped_in_the_report(tmp_path: Path) -> None:
    proto = perceptron()
    proto.graph.node[0].name = "<script>alert(1)</script>"
    np.savez(tmp_path / "d.npz", x=data(1)[0]["x"])
    line = ["sensitivity", str(saved(tmp_path, proto)), "--data", str(tmp_path / "d.npz"), "--quiet"]
    assert main([*line, "--report", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
