"""What is installed is what lies in the tree, importing it is cheap, and the README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("tensorrt", "tensorrt_rtx", "polygraphy", "torch", "transformers")
HEAVY = ("numba", "matplotlib")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    _python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_exactly_the_package(wheel: Path) -> None:
    package = ROOT / "qcompiler"
    tree = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if _is_source(path)}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == tree
    assert "qcompiler/py.typed" in names


def test_installation_adds_one_name_a_command_and_the_licence(wheel: Path, tmp_path: Path) -> None:
    _python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    installed = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in installed if not name.endswith(".dist-info")] == ["bin", "qcompiler"]
    (info,) = tmp_path.glob("onnx_qcompiler-*.dist-info")
    assert "qcompiler = qcompiler.cli.main:main" in (info / "entry_points.txt").read_text(encoding="utf8")
    assert (info / "licenses" / "LICENSE").read_text(encoding="utf8") == (ROOT / "LICENSE").read_text(encoding="utf8")


def test_version_is_the_same_everywhere(wheel: Path) -> None:
    import qcompiler
    from qcompiler._version import __version__

    assert qcompiler.__version__ == __version__
    assert wheel.name.split("-")[1] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf8")


@pytest.mark.parametrize("module", ["qcompiler", "qcompiler.cli.main"])
def test_import_works_with_engines_blocked_and_loads_nothing_heavy(module: str) -> None:
    program = f"""
import sys
for name in {ENGINES}:
    sys.modules[name] = None  # an import of it raises ImportError
import {module}
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    assert _python("-c", program).split() == []


def test_dependencies_are_ranges_and_only_one_onnxruntime_fits_a_machine() -> None:
    from packaging.requirements import Requirement

    with (ROOT / "pyproject.toml").open("rb") as file:
        lines = tomllib.load(file)["project"]["dependencies"]
    requirements = [Requirement(line) for line in lines]
    assert all(requirement.specifier and "==" not in str(requirement.specifier) for requirement in requirements)
    machines = [("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64"), ("win32", "ARM64"), ("darwin", "arm64")]
    for platform, machine in machines:
        here = {"sys_platform": platform, "platform_machine": machine}
        runtimes = [r.name for r in requirements if "onnxruntime" in r.name and r.marker and r.marker.evaluate(here)]
        assert runtimes == ["onnxruntime-gpu" if machine in ("x86_64", "AMD64") else "onnxruntime"]


def test_readme_names_the_two_commands_and_make_knows_them() -> None:
    readme, makefile = (_text(name) for name in ("README.md", "Makefile"))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z]+)", readme))
    for target in re.findall(r"\bmake ([a-z]+)", "\n".join(_code(readme))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README says 'make {target}'"


def _python(*arguments: str | Path) -> str:
    """Runs this Python in the root of the repository; its standard output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _text(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf8")


def _code(markdown: str) -> list[str]:
    """Fenced blocks and inline code."""
    return [block or inline for block, inline in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", markdown, re.DOTALL)]
