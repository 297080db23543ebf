"""Tokenizers: which file is read, what stands around a text, and what is missing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qcompiler.data.tokenizer import load_tokenizer
from qcompiler.errors import DataError
from tests.kit import reading


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


@pytest.mark.parametrize(("begin", "end"), [(True, False), (False, True), (True, True), (False, False)])
def test_what_stands_around_a_text_is_known_and_left_out_of_it(tmp_path: Path, begin: bool, end: bool) -> None:
    reading.tokenizer(tmp_path, begin=begin, end=end)
    found = load_tokenizer(tmp_path)
    assert (found.before, found.after) == ((0,) if begin else (), (1,) if end else ())
    assert found.encode("the café") == reading.ids(tmp_path / "tokenizer.json", "the café")
    assert not {0, 1} & set(found.encode("the river " * 50))
    assert found.encode("") == []


def test_a_file_and_its_folder_are_the_same_tokenizer(tmp_path: Path) -> None:
    file = reading.tokenizer(tmp_path / "llama")
    by_file, by_folder = load_tokenizer(str(file)), load_tokenizer(file.parent)
    assert by_file.digest == by_folder.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (by_file.name, by_folder.name) == ("tokenizer.json", "llama")


def test_limits_of_the_training_are_lifted(tmp_path: Path) -> None:
    file = reading.tokenizer(tmp_path)
    limited = Tokenizer.from_file(str(file))
    limited.enable_truncation(4)
    limited.enable_padding(length=9)
    limited.save(str(file))
    found = load_tokenizer(file)
    assert len(found.encode("river " * 20)) > 9
    assert len(found.encode("a")) == 1


def test_a_file_that_changes_is_read_again_and_otherwise_once(tmp_path: Path) -> None:
    file = reading.tokenizer(tmp_path)
    first = load_tokenizer(file)
    assert load_tokenizer(file) is first
    reading.tokenizer(tmp_path, begin=False)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert load_tokenizer(file).before == ()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no tokenizer: neither tokenizer.json nor tokenizer.model, vocab.txt or a GGUF file"),
        ({"tokenizer.json": "{}"}, "cannot be read as a tokenizer"),
        ({"tokenizer.json": "\x00"}, "cannot be read as a tokenizer"),
        ({"tokenizer_config.json": '{"model_max_length": 8}'}, "tokenizer_config.json is none"),
    ],
)
def test_what_is_no_tokenizer_is_answered(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="there is no tokenizer"):
        load_tokenizer(tmp_path / "none")
