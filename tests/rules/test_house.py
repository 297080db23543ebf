"""The house stays as it is described: rooms with a floor, short files, a test file for each, one name for one thing."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from docs import generate
from qcompiler.compiler.base import Stage
from qcompiler.passes import catalogue

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, TESTS = ROOT / "qcompiler", ROOT / "tests"
FILES = sorted(PACKAGE.rglob("*.py"))
WORDS = ("errors", "plan", "target")  # that all rooms speak: files beside the rooms, with a floor
BESIDE = ("__init__.py", "__main__.py", "_version.py")
SPEAKING = ("", "calibrators", "engines", "recipe")  # folders whose `__init__.py` hands on names
NO_PHASE = ("absorb",)  # folders of `passes` that serve phases
NO_PASS = ("qfep/layout", "qfep/prefix", "qfep/sites")  # what a prefix is; its search asks too
UNMIRRORED = ("benchmarks", "kit", "rules", "whole")  # folders of `tests` that are no rooms
MOST_FILES, MOST_LINES = 20, 500
LIBRARIES = ("tensorrt", "tensorrt_rtx", "polygraphy", "torch", "transformers")  # need not be installed
HEAVY = ("numba", "matplotlib")  # are installed and slow to load

# Exceptions. These only shrink: a test fails when one is needed no more.
LONG: tuple[str, ...] = ()
NOT_ALONE: Mapping[str, str] = {  # files without a test file of their own
}


def _folders(top: Path) -> list[Path]:
    return sorted(one for one in top.iterdir() if one.is_dir() and one.name != "__pycache__")


def test_every_room_has_a_floor_and_nothing_else_lies_in_the_package() -> None:
    rooms = [one for one in generate.rooms() if one not in WORDS]
    assert sorted(rooms) == [one.name for one in _folders(PACKAGE)]
    files = sorted(one.name for one in PACKAGE.iterdir() if one.is_file())
    assert files == sorted([*BESIDE, *(f"{word}.py" for word in WORDS), "py.typed"])


def test_floors_are_those_of_the_architecture() -> None:
    table = re.findall(r"^\| [\d, –]+ \| (.*?)(?<!\\) \|", (ROOT / "ARCHITECTURE.md").read_text("utf8"), re.MULTILINE)
    assert [room for cell in table for room in re.findall(r"`(\w+)`", cell)] == generate.rooms()


def test_the_readme_names_every_room() -> None:
    (tree,) = re.findall(r"```text\n(qcompiler/\n.*?)```", (ROOT / "README.md").read_text("utf8"), re.DOTALL)
    named = [word for line in tree.splitlines()[1:] for word in re.findall(r"^    (.*?)   ", line)]
    found = [one.removesuffix("/").removesuffix(".py") for line in named for one in line.split()]
    assert found == [one for one in found if one in generate.rooms()]
    assert sorted(found) == sorted(generate.rooms())


@pytest.mark.parametrize("top", ["qcompiler", "tests", "benchmarks", "demo", "docs"])
def test_no_folder_is_full_and_no_file_is_long(top: str) -> None:
    files = sorted((ROOT / top).rglob("*.py"))
    assert files
    counts = Counter(file.parent.relative_to(ROOT).as_posix() for file in files)
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}
    lines = {file.relative_to(ROOT).as_posix(): len(file.read_text("utf8").splitlines()) for file in files}
    long = [name for name, count in lines.items() if count > MOST_LINES]
    assert long == [one for one in LONG if one.startswith(f"{top}/")]


def _tested() -> Iterator[tuple[str, str | None]]:
    """Every test file of a room, as `folder/test_subject_aspect`, with the file that it tests; None without one."""
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.relative_to(TESTS).parent
        if folder.parts and folder.parts[0] in UNMIRRORED:
            continue
        beside = {one.stem.lstrip("_"): one for one in (PACKAGE / folder).glob("*.py") if one.name not in BESIDE}
        words = path.stem.removeprefix("test_").split("_")
        whole = ("_".join(words[:n]) for n in range(len(words), 0, -1))  # the longest name of a file, then the aspect
        found = next((beside[one] for one in whole if one in beside), None)
        yield path.relative_to(TESTS).as_posix(), None if found is None else found.relative_to(PACKAGE).as_posix()


def test_every_test_file_belongs_to_a_file() -> None:
    assert [test for test, file in _tested() if file is None] == []


def test_every_file_has_its_test_file() -> None:
    tested = {file for _, file in _tested()}
    subjects = [one.relative_to(PACKAGE) for one in FILES if one.name not in BESIDE]
    alone: dict[str, list[str]] = defaultdict(list)
    for one in subjects:
        if one.as_posix() not in tested:
            alone[one.parent.as_posix()].append(one.stem)
    assert {folder: " ".join(names) for folder, names in alone.items()} == dict(NOT_ALONE)


def test_a_file_of_a_phase_is_one_pass() -> None:
    passes = Counter(kind.__module__ for kind in catalogue.ALL)
    files = [
        f"qcompiler.passes.{phase.name}.{one.stem}"
        for phase in _folders(PACKAGE / "passes")
        for one in phase.glob("[!_]*.py")
        if phase.name not in NO_PHASE and f"{phase.name}/{one.stem}" not in NO_PASS
    ]
    assert passes == Counter(files)


def test_no_public_class_has_its_name_twice() -> None:
    names = Counter(
        node.name
        for file in FILES
        for node in ast.parse(file.read_text("utf8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_folder_says_what_it_is_and_nothing_else() -> None:
    for folder in {file.parent for file in FILES}:
        body = ast.parse((folder / "__init__.py").read_text("utf8")).body
        assert isinstance(body[0], ast.Expr), folder
        assert isinstance(body[0].value, ast.Constant), folder
        if folder.relative_to(PACKAGE).as_posix().replace(".", "") not in SPEAKING:
            assert len(body) == 1, folder


def test_importing_a_room_loads_no_engine_no_torch_and_no_numba() -> None:
    modules = [
        ".".join(one.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for one in FILES
        if one.name != "__main__.py"  # it runs the command line
    ]
    program = f"""
import importlib, sys
for name in {LIBRARIES}:
    sys.modules[name] = None  # an import of it raises ImportError
for module in {modules}:
    importlib.import_module(module)
    loaded = [name for name in {HEAVY} if name in sys.modules]
    if loaded:
        raise SystemExit(f"{{module}} loads {{loaded}}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (PACKAGE / "compiler/stages").glob("[a-z]*.py")))
def test_a_file_of_the_stages_has_the_stage_of_its_name(name: str) -> None:
    found = getattr(importlib.import_module(f"qcompiler.compiler.stages.{name}"), name)
    assert isinstance(found, Stage)
    assert found.name == name
