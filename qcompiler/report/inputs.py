"""The section of the HTML report about the values that each input gets, by what the data is for."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from qcompiler.report.figures import count, short
from qcompiler.report.page import code, section, table


def inputs(found: Mapping[str, Mapping[str, Mapping[str, Any]]] | None) -> str:
    """A row for each input and each set of data; nothing without data."""
    if not found:
        return ""
    names = list(dict.fromkeys(name for spreads in found.values() for name in spreads))
    cells = (
        (
            code(name),
            escape(what),
            *(short(spreads[name][figure]) for figure in ("minimum", "maximum", "mean", "std")),
            count(spreads[name]["elements"]),
        )
        for name in names
        for what, spreads in found.items()
        if name in spreads
    )
    columns = ("input", "data", "smallest", "largest", "mean", "standard deviation", "elements")
    note = "What the inputs were given. Data of different preparation shows here."
    return section("Inputs", note, table(columns, cells, figures=range(2, 7)))
