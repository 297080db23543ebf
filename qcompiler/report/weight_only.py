"""The section of the HTML report about weights in few bits, and its line on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from qcompiler.report.figures import decibel, number, size
from qcompiler.report.page import code, fold, section, table

Record = Mapping[str, Any]


def line(found: Record) -> str:
    """One line: what is stored, in which form, by which method, how many bytes that takes, and what errs most."""
    if not found["layers"]:
        return "none"
    forms = ", ".join(f"{count} {form}" for form, count in found["forms"].items())
    text = f"{forms}, by {_methods(found)}: {size(found['bytes_before'])} to {size(found['bytes_after'])}"
    tables = found.get("tables") or ()  # a manifest may be older than these
    if tables:
        text += f"; {len(tables)} table{'s' * (len(tables) > 1)} int8 per row"
    if found["restored"]:
        text += f"; {len(found['restored'])} went back to float for a gate"
    worst = min(found["layers"], key=_known)
    judged = f" ({worst['judged']})" if worst.get("judged") else ""
    return f"{text}; {worst['node']} errs most, {decibel(_known(worst))}{judged}"


def weight_only(found: Record | None) -> str:
    """Every stored weight, with its form and its error."""
    if not found or not found["layers"]:
        return ""
    columns = (
        "layer",
        "inputs",
        "outputs",
        "stored",
        "method",
        "bytes",
        "weight",
        "its outputs",
        "over nearest",
        "measured",
        "why",
    )
    cells = (
        (
            code(one["node"]),
            str(one["depth"]),
            str(one["width"]),
            f"{one['format'].upper()}, blocks of {one['block']}" if one["block"] else f"{one['format'].upper()}",
            escape(str(one["method"])),
            size(one["bytes"]),
            decibel(one["weight_db"]),
            decibel(one["output_db"]),
            decibel(one["gain_db"]),
            escape(str(one.get("judged") or "–")),
            escape(str(one["why"])),
        )
        for one in found["layers"]
    )
    count = len(found["layers"])
    body = fold(f"{count} layers", count, table(columns, cells, figures=(1, 2, 5, 6, 7, 8), find=True))
    return section("Weight-only", escape(f"{line(found)[:1].upper()}{line(found)[1:]}.{_scaled(found)}"), body)


def _methods(found: Record) -> str:
    """The method, or how often each one was chosen."""
    counts = found.get("methods") or {}
    if len(counts) < 2:
        return str(next(iter(counts), found["method"]))
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{found['method']} ({listed})"


def _scaled(found: Record) -> str:
    if not found["scaled"]:
        return ""
    most = max(value for value in found["scaled"].values())
    return f" AWQ scaled {len(found['scaled'])} activations, which gained up to {most:.1f} dB over rounding to nearest."


def _known(one: Record) -> float:
    values = (number(one["output_db"]), number(one["weight_db"]))
    return next((value for value in values if value is not None), 200.0)
