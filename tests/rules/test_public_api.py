"""The public names: few, documented, typed, and nothing else slips out."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qcompiler

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("bench", "build", "compile", "diff", "explain", "export", "inspect", "quantize", "sensitivity", "verify")
NAMES = (
    "Bench",
    "CompileResult",
    "Difference",
    "Explanation",
    "ExportResult",
    "Inspection",
    "Recipe",
    "Sensitivity",
    "Text",
    "__version__",
    *COMMANDS,
)


def test_all_is_the_documented_list() -> None:
    assert sorted(qcompiler.__all__) == sorted(NAMES)


def test_nothing_else_is_public() -> None:
    program = (
        "import qcompiler, types; print(*[n for n in dir(qcompiler) if n[0] != '_' and n not in qcompiler.__all__])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {path.stem for path in (ROOT / "qcompiler").iterdir()}
    assert set(done.stdout.split()) - modules - {"annotations"} == set()


def test_functions_stay_functions_when_every_module_is_imported() -> None:
    # Importing `qcompiler.verify` would put a module where a lazy function of that name stands.
    program = f"""
import importlib, pkgutil, qcompiler
for module in pkgutil.walk_packages(qcompiler.__path__, "qcompiler."):
    if module.name != "qcompiler.__main__":  # it runs the command line
        importlib.import_module(module.name)
print(*[name for name in {COMMANDS} if not callable(getattr(qcompiler, name))])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_public_name_has_a_docstring_and_hints(name: str) -> None:
    thing = getattr(qcompiler, name)
    assert inspect.getdoc(thing)
    signature = inspect.signature(thing)
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
    assert inspect.isclass(thing) or signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", COMMANDS)
def test_function_is_a_command_too_and_its_errors_are_named(name: str) -> None:
    command = [sys.executable, "-m", "qcompiler", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    documentation = inspect.getdoc(getattr(qcompiler, name)) or ""
    assert "Raises:" in documentation or documentation.startswith("As `compile`")


def test_readme_shows_the_python_call() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    used = set(re.findall(r"\bqcompiler\.([A-Za-z_]+)\(", readme))
    assert "compile" in used
    assert used <= set(NAMES)
