"""A file is known by its name, its content and its size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qcompiler.support.file import File, ModelFile


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 7])
def test_hash_and_size_are_those_of_the_whole_content(size: int, tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(256)) * (size // 256 + 1)
    (tmp_path / "m.onnx").write_bytes(content[:size])
    found = File.of(tmp_path / "m.onnx")
    assert found == File("m.onnx", hashlib.sha256(content[:size]).hexdigest(), size)


def test_a_name_has_no_folder_and_any_alphabet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "模型 é.onnx").write_bytes(b"x")
    assert File.of(str(tmp_path / "a" / "模型 é.onnx")).name == "模型 é.onnx"


def test_the_same_content_in_two_places_is_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m").write_bytes(b"weights")
    one, other = (File.of(tmp_path / folder / "m") for folder in ("a", "b"))
    assert one == other
    assert len({one, other}) == 1
    (tmp_path / "b" / "m").write_bytes(b"weightt")
    assert File.of(tmp_path / "b" / "m") != one


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        File.of(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        File.of(tmp_path)


def test_a_model_has_the_files_of_its_weights_with_it(tmp_path: Path) -> None:
    for name in ("m.onnx", "m-1.data", "m-2.data"):
        (tmp_path / name).write_bytes(name.encode())
    found = ModelFile.of(tmp_path / "m.onnx", [tmp_path / "m-1.data", tmp_path / "m-2.data"])
    assert (found.name, found.bytes) == ("m.onnx", 6)
    assert found.data == tuple(File.of(tmp_path / name) for name in ("m-1.data", "m-2.data"))
