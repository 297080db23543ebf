"""What is left behind where the result of a compilation is not accepted: what was tried, for people and programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qcompiler.compiler.artefacts import Paths, leave
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.record import manifest
from qcompiler.errors import AccuracyError, UsageError
from qcompiler.recipe.recipe import Recipe


@contextmanager
def told(run: Compilation, paths: Paths, recipe: Recipe) -> Iterator[None]:
    """Where a gate is missed inside: writes manifest and report under other names than those of a result.

    Args:
        run: with what the stages have recorded until then.
        paths: of the artefacts that there would be.
        recipe: as it was effectively used.

    Raises:
        AccuracyError: the one from inside, with the manifest, and with a word of where the report is.
    """
    try:
        yield
    except AccuracyError as error:
        error.manifest = _record(run, recipe, error)
        error.args = (f"{error} {_left(paths, error.manifest)}",)
        raise


def _record(run: Compilation, recipe: Recipe, error: AccuracyError) -> dict[str, Any]:
    """The manifest with what was missed; for its purpose, a result that is refused is broken."""
    record = manifest(run, recipe)
    reasons = [one for one in (record["verdict"] or {}).get("reasons", ()) if one != str(error)]
    verdict = {"verdict": "broken", "reasons": [str(error), *reasons]}
    return {**record, "missed": {"code": error.exit_code, "error": str(error)}, "verdict": verdict}


def _left(paths: Paths, record: Mapping[str, Any]) -> str:
    """Where the report is, or why there is none: that is no reason to say nothing of the gate."""
    try:
        leave(paths, record)
    except UsageError as error:
        return f"What was tried is not on the disk: {error}"
    return f"What was tried is in '{paths.failed_report.name}' and '{paths.failed_manifest.name}'."
