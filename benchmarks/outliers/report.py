"""The tables of docs/figures/outliers.md, between two marks; the prose around them is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.outliers.cells import GLU, GLU_TRAINED, Case, cases
from benchmarks.report import put_between_marks, table
from benchmarks.results import Outcome
from benchmarks.subjects import SUBJECTS

TITLES = {
    "glu": "GLU decoders, with and without planted outliers",
    "int8": "Encoders in INT8",
    "fp8": "Encoders in FP8, and mixed",
    "decoder": "SmolLM2-135M",
    "cost": "Time and memory",
}
ROWS = tuple(TITLES)
FLOAT = ("fp16", "bf16", "fp32")
COLUMNS = ("model", "recipe", "SQNR dB", "of it on kept samples", "metric", "INT8", "FP8", "float", "audit")
COST_COLUMNS = ("model", "samples", "recipe", "÷ plain process", "÷ plain pass", "peak memory", "÷ plain", "repeats")
Found = Mapping[str, Any]


def replace_tables(document: Path, cache: Path) -> int:
    """Puts the tables of all results in `cache` into `document`; returns how many there are.

    Raises:
        ValueError: The document has no marks.
    """
    found = {
        path.stem: json.loads(path.read_text(encoding="utf8")) for path in sorted((cache / "cells").glob("*.json"))
    }
    costs = [Outcome.read(path) for path in sorted((cache / "cost").glob("*.json"))]
    put_between_marks(document, markdown(found, costs))
    return len(found) + len(costs)


def markdown(found: Mapping[str, Found], costs: Iterable[Outcome]) -> str:
    """All tables.

    Args:
        found: cells by name, as `benchmarks.outliers` stores them.
        costs: what the whole processes took.
    """
    known = [case for case in cases(trained=True) if case.name in found]
    parts = []
    for row in ROWS[:-1]:
        mine = [case for case in known if case.row == row]
        if not mine:
            continue
        parts.append(f"### {TITLES[row]}\n\n" + table(COLUMNS, [_row(case, found[case.name]) for case in mine]))
        parts += [text for text in (_gap(found) if row == "glu" else "", _remarks(mine, found)) if text]
        parts += _best_alpha(mine, found) if row in ("glu", "int8", "decoder") else []
    costs = list(costs)
    if costs:
        parts.append(f"### {TITLES['cost']}\n\n" + table(COST_COLUMNS, [_cost(one) for one in costs]))
    return "\n" + ("\n\n".join(parts) or "Nothing was measured yet.") + "\n"


def _row(case: Case, found: Found) -> list[str]:
    if "error" in found:
        return [case.model, case.title, "**fails**", *[""] * (len(COLUMNS) - 3)]
    manifest, worth = found["manifest"], found["worth"]
    kept = [output["sqnr_db"] for output in (manifest.get("verification") or {}).get("outputs", [])]
    kept = [level for level in kept if level is not None]
    return [
        case.model,
        case.title,
        _decibel(level(found)),
        _decibel(min(kept, default=None)),
        f"{worth['metric']:.4f} of {worth['metric_float']:.4f}" if "metric" in worth else "",
        *_shares(manifest["shares"]),
        _audit(manifest["audit"]),
    ]


def level(found: Found) -> float | None:
    """SQNR of the worst float output over the evaluation's feeds; None where it failed or nothing differs."""
    levels = [one for one in found.get("worth", {}).get("sqnr_db", {}).values() if one is not None]
    return min(levels, default=None)


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _shares(shares: Mapping[str, float]) -> list[str]:
    high = sum(shares.get(one, 0.0) for one in FLOAT)
    return [f"{shares.get('int8', 0):.1%}", f"{shares.get('fp8', 0):.1%}", f"{high:.1%}"]


def _audit(audit: Mapping[str, Any]) -> str:
    if not audit:
        return ""
    return f"{audit['confirmed']} of {audit['promised']}" + ("" if audit["ok"] else ", **not ok**")


def _gap(found: Mapping[str, Found]) -> str:
    """The targets of the GLU row: outliers against none under the same recipe, and what is lost without a remedy."""
    lines = []
    for plain, planted in (GLU, GLU_TRAINED):
        names = (f"{plain}.plain", f"{planted}.plain", f"{planted}.both", f"{plain}.both")
        levels = [level(found.get(name, {})) for name in names]
        if any(one is None for one in levels):
            continue
        bare, broken, mended, same = (one or 0.0 for one in levels)
        lines.append(
            f"* {planted}: plain W8A8 is {bare - broken:.1f} dB worse than on {plain}; with smooth-quant and qfem "
            f"it is {mended - bare:+.1f} dB from {plain} in plain W8A8, and {mended - same:+.1f} dB from {plain} under "
            "the same recipe."
        )
    return "\n".join(lines)


def _best_alpha(mine: Iterable[Case], found: Mapping[str, Found]) -> list[str]:
    """Whether `auto` is as good as the best fixed alpha; the rows compared differ in alpha only."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for case in mine:
        alpha, qfem = (str(case.tables.get(name, {}).get("alpha")) for name in ("smooth_quant", "qfem"))
        value = level(found[case.name])
        if value is None or case.key.startswith("goal"):
            continue
        insert = ", Mul inserted" if case.tables["smooth_quant"]["insert"] else ""
        groups.setdefault((case.model, f"qfem {qfem}{insert}"), {})[alpha] = value
    lines = []
    for (model, setting), levels in groups.items():
        fixed = {alpha: value for alpha, value in levels.items() if alpha != "auto"}
        if "auto" in levels and len(fixed) > 1:
            best = max(fixed, key=lambda alpha: fixed[alpha])
            figures = f"auto {levels['auto']:.1f} dB, the best fixed alpha ({best}) {fixed[best]:.1f} dB"
            lines.append(f"* {model}, {setting}: {figures}.")
    return ["\n".join(lines)] if lines else []


def _remarks(mine: Iterable[Case], found: Mapping[str, Found]) -> str:
    lines = []
    for case in mine:
        one = found[case.name]
        errors = [one.get("error"), one.get("worth", {}).get("error")]
        lines += [f"* {case.model}, {case.title}: {text}" for text in errors if text]
    return "\n".join(lines)


def _cost(one: Outcome) -> list[str]:
    start = [one.cell.model, str(one.cell.samples), SUBJECTS[one.cell.subject].title]
    if not one.ok:
        return [*start, "**fails**", *[""] * (len(COST_COLUMNS) - 4)]
    ratios = [f"{one.like_for_like():.2f}", f"{one.to_pass():.2f}"]
    return [*start, *ratios, f"{one.peak_mb():.0f} MB", f"{one.peak_ratio():.2f}", str(len(one.runs))]
