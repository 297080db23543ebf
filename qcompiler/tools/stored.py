"""The manifest that is meant by a path: the file itself, or the one in a folder, beside an engine, model or report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import UsageError
from qcompiler.report.manifest import read

ENDING: Final = ".manifest.json"
FAILED: Final = ".failed.manifest.json"  # of a compilation that was not accepted
_ARTEFACTS: Final = (".report.html", ".qdq.onnx", ".onnx", ".engine", ".plan", ".html")
_NAMED: Final = 8


def opened(manifest: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What a manifest is called, and what it says.

    Args:
        manifest: a manifest file, an artefact beside which it lies, the folder of one compilation, or what was read
            of it already.

    Raises:
        UsageError: there is none, or more than one; it is no manifest, or of a newer qcompiler.
    """
    if isinstance(manifest, Mapping):
        return "manifest", manifest
    path = manifest_at(Path(manifest))
    return path.name, read(path)


def manifest_at(path: Path) -> Path:
    """The manifest file that is meant by a path.

    Raises:
        UsageError: there is none, or more than one.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".json":
        return path  # whether it is one is seen when it is read
    stem = next((path.name.removesuffix(end) for end in _ARTEFACTS if path.name.endswith(end)), path.stem)
    beside = [path.with_name(f"{stem}{end}") for end in (ENDING, FAILED)]
    found = next((one for one in beside if one.is_file()), None)
    if found is None:
        what = "is no manifest and has none" if path.exists() else "is not there, and no manifest is"
        raise UsageError(f"'{path}' {what} beside it: '{beside[0].name}' would be it. Name a manifest file")
    return found


def _in_folder(folder: Path) -> Path:
    """The one manifest of a folder; of compilations that failed only where no other succeeded."""
    every = sorted(folder.glob(f"*{ENDING}"))
    accepted = [one for one in every if not one.name.endswith(FAILED)]
    found = accepted or every
    if len(found) != 1:
        listed = ", ".join(one.name for one in found[:_NAMED]) + ", …" * (len(found) > _NAMED)
        many = f"has {len(found)} manifests: name one of {listed}" if found else f"has no file that ends in {ENDING}"
        raise UsageError(f"folder '{folder}' {many}")
    return found[0]
