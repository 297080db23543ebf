"""torch's exporter: what it needs, and what is said where it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qcompiler.cli.main import main


@pytest.mark.parametrize("library", ["torch", "onnxscript", "transformers"])
def test_missing_libraries_are_named_with_the_extra_that_has_them(
    library: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(folder), "-o", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr().err
    assert f"'{library}'" in said
    assert "pip install 'onnx-qcompiler[torch]'" in said
