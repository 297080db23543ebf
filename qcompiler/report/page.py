"""The parts of an HTML page: cards, tables, what is folded away. Everything that is not HTML already is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from qcompiler.report.style import SCRIPT, STYLE

OPEN_ROWS = 24  # a table with more rows is folded
UNBROKEN = ("op", "precision", "rule", "type", "kind", "method")  # columns of short words


def page(name: str, parts: Iterable[str]) -> str:
    """A whole file that needs nothing else; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} – qcompiler</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(filter(None, parts))
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def section(heading: str, note: str, body: str) -> str:
    """A card with a heading and a line of explanation."""
    small = f'<p class="dim">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{small}{body}</section>"


def fold(summary: str, rows: int, body: str) -> str:
    """A part that can be opened; it is open at first if it has few rows."""
    return f"<details{' open' if rows <= OPEN_ROWS else ''}><summary>{escape(summary)}</summary>{body}</details>"


def code(text: Any) -> str:
    """A name of a model, as text."""
    return f"<code>{escape(str(text))}</code>"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, figures: Iterable[int] = (), find: bool = False
) -> str:
    """A table whose cells are HTML already; `figures` are the columns that are set to the right."""
    right = set(figures)
    whole = [' class="w"' if name in UNBROKEN else "" for name in columns]
    kinds = [' class="n"' if i in right else whole[i] for i in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    search = '<input type="search" placeholder="find …" aria-label="find">' if find else ""
    return f'{search}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
