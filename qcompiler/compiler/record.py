"""The manifest, made of what the stages recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qcompiler.compiler.base import Compilation
from qcompiler.passes.base import Changed, Report
from qcompiler.recipe.recipe import Recipe
from qcompiler.report.manifest import SCHEMA
from qcompiler.support.as_json import plain
from qcompiler.support.machine import environment, own_version, peak_memory_mb, version_of

FIRST: Final = ("missed", "verdict")  # with the warnings, what must be read before any figure
ABSENT: Final[Mapping[str, Any]] = {  # in this order; what no stage recorded did not take place
    "source": None,
    "export": None,
    "data": None,
    "ranges": None,
    "inputs": None,
    "random_data": False,
    "not_measured": [],
    "target": None,
    "recipe": None,
    "passes": [],
    "equivalence": None,
    "random": [],
    "macs": None,
    "plan": None,
    "quantizers": None,
    "goal": None,
    "rungs": [],
    "histograms": {},
    "graph": None,
    "edits": {},
    "safety": None,
    "front": [],
    "outliers": [],
    "residuals": [],
    "smooth_quant": None,
    "qfem": None,
    "qfep": None,
    "weight_only": None,
    "llm_int8": None,
    "verification": None,
    "tries": [],
    "engine": None,
    "cache": None,
    "audit": None,
    "prediction": None,
    "files": {},
    "estimate": None,  # beside what it took: times and memory stand at the end
}
FLOAT: Final = ("load", "clean_up", "qfep", "smooth_quant", "llm_int8")  # stages that edit the float model
TRIVIAL: Final = ("normalize-constants", "name-dimensions")  # passes whose edits say nothing of what is computed


def manifest(run: Compilation, recipe: Recipe) -> dict[str, Any]:
    """Everything that is known about a compilation, as plain data; keys stand in a fixed order.

    A key that a stage recorded and nobody knows here stands behind the known ones, so that a new stage needs no edit.

    Args:
        run: with the records, passes, timings and warnings of its stages.
        recipe: as it was effectively used.
    """
    asked = {"target": recipe.resolve(), "recipe": recipe.to_dict()}
    given = {**asked, "passes": _passes(run), "edits": _edits(run), **run.records}
    given["rungs"] = list(given.get("rungs", {}).values())  # each stage adds its own, in the order of the ladder
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "qcompiler": version_of("onnx-qcompiler") or own_version(),
                **{key: given.pop(key, None) for key in FIRST},
                "warnings": run.warnings,
                "environment": environment(),
                **{key: given.pop(key, absent) for key, absent in ABSENT.items()},
                **given,
                "timings": {stage: round(seconds, 3) for stage, seconds in run.timings.items()},
                "reused": {stage: round(seconds, 3) for stage, seconds in run.reused.items()},
                "peak_memory_mb": peak_memory_mb(),
            }
        )
    )


def _passes(run: Compilation) -> list[dict[str, Any]]:
    done = [one for passes in run.passes.values() for one in passes]
    errors = {report.name: error for report, error in done if error is not None}  # of a pass that ran twice, the last
    return [_pass(report, errors.get(report.name)) for report, _ in done]


def _edits(run: Compilation) -> dict[str, dict[str, str]]:
    """By pass, what it did to the float model, by the name of the node or tensor where it did it.

    So a node of the source that the plan does not have is found all the same: folded, removed, written out.
    """
    found: dict[str, dict[str, str]] = {}
    for stage in FLOAT:
        for report, _ in run.passes.get(stage, ()):
            name = report.name.partition("{")[0]
            for note in report.notes if not report.undone and name not in TRIVIAL else ():
                if isinstance(note, Changed) and note.node:
                    places = found.setdefault(name, {})
                    places[note.node] = f"{places[note.node]}; {note.text}" if note.node in places else note.text
    return found


def _pass(report: Report, error: float | None) -> dict[str, Any]:
    return {
        "pass": report.name,
        "seconds": round(report.seconds, 4),
        "changed": report.changed,
        "skipped": report.skipped,
        "relative_error": error,
        "undone": report.undone or None,
    }
