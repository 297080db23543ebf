"""Tokenizers: which file is read, what stands around a text, and what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("package", "file"), [("tokenizers", "tokenizer.json"), ("transformers", "tokenizer.model")])
def test_a_package_that_is_missing_is_named(tmp_path: Path, package: str, file: str) -> None:
    (tmp_path / file).write_text("{}")
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from qcompiler.data.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UsageError" in done.stderr.splitlines()[-1]
    assert f"the package {package}, which is not installed: pip install" in done.stderr
