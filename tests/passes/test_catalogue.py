"""All passes together: the list and the files agree."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from qcompiler.passes import catalogue
from qcompiler.passes.base import Pass

ROOM = Path(catalogue.__file__).parent


def test_all_and_the_files_agree() -> None:
    modules = {path: ".".join(path.relative_to(ROOM.parent.parent).with_suffix("").parts) for path in _files()}
    defined = {
        name: path.stem
        for path, module in modules.items()
        for name, one in vars(import_module(module)).items()
        if isinstance(one, type) and issubclass(one, Pass) and one is not Pass and one.__module__ == module
    }
    assert {one.__name__ for one in catalogue.ALL} == set(defined)
    assert {one.__name__: one.name().replace("-", "_") for one in catalogue.ALL} == defined


def _files() -> list[Path]:
    return [path for path in ROOM.rglob("*.py") if path.stem != "__init__"]


def test_every_pass_has_a_test_file() -> None:
    tested = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    assert [one.name() for one in catalogue.ALL if f"test_{one.name().replace('-', '_')}" not in tested] == []
