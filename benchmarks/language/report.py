"""The tables of docs/figures/language_models.md, between two marks; the prose around them is written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.language.cells import BY_KEY, FLOAT, FORMS, MODELS, ROWS
from benchmarks.report import table

COLUMNS = (
    "row",
    "perplexity",
    "÷ float",
    "short",
    "linear MACs",
    "size MB",
    "compiled in",
    "÷ plain pass",
    "CPU seconds ÷",
    "peak memory",
    "÷ plain",
    "engine",
)
Found = Mapping[str, Any]
WORTH_SAYING = 0.005  # share of the linear multiply-accumulates


def read_cells(folder: Path) -> dict[str, Any]:
    """All results by the name of their cell."""
    return {path.stem: json.loads(path.read_text(encoding="utf8")) for path in sorted(folder.glob("*.json"))}


def markdown(found: Mapping[str, Found]) -> str:
    """All tables: one of each model and form that has a result, rows in the order of the protocol."""
    parts = [_machines(found)] if found else []
    for model, title in MODELS.items():
        for form, words in FORMS.items():
            mine = {row.key: found[name] for row in ROWS if (name := f"{model}.{form}.{row.key}") in found}
            if mine:
                parts.append(f"### {title}, {words}\n\n{_circumstances(mine)}" + _table(mine) + _remarks(mine))
    return "\n" + ("\n\n".join(parts) or "Nothing was measured yet.") + "\n"


def _machines(found: Mapping[str, Found]) -> str:
    machines = {
        f"{one['cores']} cores of {one['cpu']} ({one['int8']}), {one['memory_gb']} GB, Python {one['python']}"
        for one in (cell.get("machine") for cell in found.values())
        if one
    }
    return f"Measured on {'; '.join(sorted(machines)) or 'an unknown machine'}, beside other work."


def _circumstances(mine: Mapping[str, Found]) -> str:
    reference = mine.get(FLOAT, {})
    worth = reference.get("worth", {})
    if "perplexity" not in worth:
        return ""
    plain, protocol = reference["plain"], worth["protocol"]
    return (
        f"Float: perplexity {worth['perplexity']:.3f} over {protocol['tokens']} tokens, {protocol['windows']} windows; "
        f"short protocol {worth['short']:.3f}. Plain FP32 pass: {plain['work_s']:.1f} s, {plain['peak_mb']:.0f} MB; "
        f"{reference['bytes'] / 1e6:.1f} MB on disk.\n\n"
    )


def _table(mine: Mapping[str, Found]) -> str:
    known = mine.get(FLOAT, {}).get("worth", {}).get("perplexity")
    return table(COLUMNS, [_row(key, one, known) for key, one in mine.items()])


def _row(key: str, one: Found, known: float | None) -> list[str]:
    title = BY_KEY[key].title
    if "error" in one:
        return [title, "**fails**", *[""] * (len(COLUMNS) - 2)]
    cost = [""] * 5 if key == FLOAT else _cost(one)
    return [title, *_worth(one["worth"], known), _shares(one), f"{one['bytes'] / 1e6:.1f}", *cost, _engine(one)]


def _worth(worth: Found, known: float | None) -> list[str]:
    if "error" in worth:
        return ["**does not run**", "", ""]
    ratio = "" if known is None else f"{worth['perplexity'] / known:.4f}"
    return [f"{worth['perplexity']:.3f}", ratio, f"{worth['short']:.3f}"]


def _shares(one: Found) -> str:
    """Precisions with their shares, the largest first; what is below a thousandth says nothing."""
    shares = sorted(one.get("manifest", {}).get("shares", {"fp32": 1.0}).items(), key=lambda pair: -pair[1])
    return ", ".join(f"{share:.1%} {name}" for name, share in shares if share >= 0.0005)


def _cost(one: Found) -> list[str]:
    usage, plain = one["usage"], one["plain"]
    return [
        f"{usage['wall_s']:.0f} s",
        f"{usage['wall_s'] / plain['work_s']:.1f}",
        f"{usage['cpu_s'] / plain['cpu_s']:.1f}",
        f"{usage['peak_mb']:.0f} MB",
        f"{usage['peak_mb'] / plain['peak_mb']:.2f}",
    ]


def _engine(one: Found) -> str:
    engine = one.get("engine")
    if not engine:
        return ""
    if "error" in engine:
        return "**fails**"
    audit = engine["audit"]
    confirmed = f"{audit['confirmed']} of {audit['promised']}" if audit else "not audited"
    return f"{confirmed}, {engine['bytes'] / 1e6:.1f} MB"


def _remarks(mine: Mapping[str, Found]) -> str:
    """Errors, prefixes that were taken, and rules that kept layers high."""
    lines = []
    for key, one in mine.items():
        title, manifest = BY_KEY[key].title, one.get("manifest", {})
        errors = [one.get("error"), one.get("worth", {}).get("error"), one.get("engine", {}).get("error")]
        lines += [f"* {title}: {text}" for text in errors if text]
        said = [*_prefix(manifest.get("qfep")), *_high(manifest.get("high_by_rule", {}))]
        lines += [f"* {title}: {'; '.join(said)}"] if said else []
    return "\n\n" + "\n".join(lines) if lines else ""


def _prefix(found: Found | None) -> list[str]:
    if not found:
        return []
    ids = ", ".join(map(str, found["ids"]))
    return [f"prefix {ids}" if ids else f"no prefix, {found['why']}"]


def _high(rules: Mapping[str, float]) -> list[str]:
    """Rules that kept layers in high precision, with their share; not what is a matter of course."""
    known = sorted(rules.items(), key=lambda pair: -pair[1])
    return [f"{share:.1%} high by rule {rule}" for rule, share in known if share >= WORTH_SAYING]
