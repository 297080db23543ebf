"""Data is what is in its files, and code of the user is nobody's business but the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler.content import digest
from qcompiler.data.files.opened import UNPREPARED
from qcompiler.data.identity import content_of, is_code
from qcompiler.data.source import Prepared
from qcompiler.data.text import Text
from qcompiler.outliers.qfep.find import QfepOptions
from qcompiler.recipe.tables import QfepTable


def test_a_file_with_other_bytes_is_other_data(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(3))
    before = digest(content_of(str(path)))
    assert digest(content_of(str(path))) == before
    np.savez(path, x=np.ones(3))
    assert digest(content_of(str(path))) != before


@pytest.mark.parametrize("change", ["added", "renamed", "edited"])
def test_a_folder_is_all_its_files(tmp_path: Path, change: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.png").write_bytes(b"1")
    prepared = Prepared(str(tmp_path), UNPREPARED)
    before = digest(content_of(prepared))
    if change == "added":
        (tmp_path / "b.png").write_bytes(b"1")
    elif change == "renamed":
        (tmp_path / "inner" / "a.png").rename(tmp_path / "inner" / "c.png")
    else:
        (tmp_path / "inner" / "a.png").write_bytes(b"2")
    assert digest(content_of(prepared)) != before


def test_text_is_its_files_and_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "tokenizer.json").write_text("{}")
    text = Text(tmp_path / "a.txt", tmp_path)
    before = digest(content_of(text))
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert digest(content_of(text)) != before


def test_a_prefix_that_is_given_as_text_goes_by_the_file_of_the_tokenizer(tmp_path: Path) -> None:
    options = QfepOptions(QfepTable(prefix="text:some words"), str(tmp_path), quantizes=True)
    missing = digest(options)
    (tmp_path / "tokenizer.json").write_text("{}")
    before = digest(options)
    (tmp_path / "model.safetensors").write_bytes(b"no business of the tokenizer's")
    assert digest(options) == before != missing
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert digest(options) != before


def test_functions_are_code_and_files_are_not(tmp_path: Path) -> None:
    odd = tmp_path / "a:b.npz"
    odd.write_bytes(b"")
    assert is_code("file.py:function")
    assert is_code(Prepared("module:function", UNPREPARED))
    assert is_code(list)
    assert not is_code(str(odd))
    assert not is_code("random")
    assert not is_code([{"x": np.zeros(1)}])
    assert not is_code(None)
