"""Which manifest is meant by a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.errors import UsageError
from qcompiler.tools.stored import manifest_at, opened
from tests.kit.tools import stored


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text('{"schema": 2}')
    return folder


@pytest.mark.parametrize("name", ["m.engine", "m.qdq.onnx", "m.onnx", "m.report.html", "m.manifest.json", "m"])
def test_whatever_lies_beside_it_names_it(tmp_path: Path, name: str) -> None:
    put(tmp_path, "m.manifest.json", "other.manifest.json")
    assert manifest_at(tmp_path / name) == tmp_path / "m.manifest.json"


def test_a_folder_with_one_names_it_and_those_that_failed_stand_back(tmp_path: Path) -> None:
    assert manifest_at(put(tmp_path / "a", "m.failed.manifest.json")).name == "m.failed.manifest.json"
    put(tmp_path / "a", "n.manifest.json")
    assert manifest_at(tmp_path / "a").name == "n.manifest.json"


def test_of_several_in_a_folder_one_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 2 manifests: name one of a\.manifest\.json, b\.manifest\.json"):
        manifest_at(put(tmp_path, "a.manifest.json", "b.manifest.json"))


def test_an_artefact_of_a_compilation_that_failed_finds_its_manifest(tmp_path: Path) -> None:
    put(tmp_path, "m.failed.manifest.json")
    assert manifest_at(tmp_path / "m.engine").name == "m.failed.manifest.json"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("m.engine", "is not there, and no manifest is beside it: 'm.manifest.json' would be it"),
        ("here.onnx", "is no manifest and has none beside it"),
        (".", "has no file that ends in .manifest.json"),
        ("none.json", "cannot be read"),
    ],
)
def test_where_there_is_none_it_is_said_what_would_be_it(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "here.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=says):
        opened(tmp_path / name)


def test_a_manifest_that_was_read_already_is_taken_as_it_is() -> None:
    said = stored.stored("int8")
    assert opened(said) == ("manifest", said)
    assert opened(stored.folder_of("int8")) == ("m.manifest.json", said)
