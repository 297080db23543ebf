"""What could be had for what price: plans that no other one beats in both, as a plot and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from qcompiler.report.figures import decibel, number, percent, size
from qcompiler.report.page import fold, section, table
from qcompiler.report.svg import HEIGHT, LEFT, RIGHT, WIDTH, Dot, below, decibels, figure

Record = Mapping[str, Any]
COLUMNS: Final = ("point", "quantized", "time by table", "size", "SQNR", "in high precision", "")


def front(points: Sequence[Record]) -> str:
    """The section; nothing where there is one plan or none."""
    if len(points) < 2:
        return ""
    note = (
        "Plans that no other one beats in error and price. Filled points were measured, rings are predicted; the large "
        "one was chosen. Any of them can be had without a search: --recipe with this manifest, and --pick."
    )
    if any(number(one.get("predicted_s")) is not None for one in points):
        note += (
            " Times are by the table of costs, layer by layer: they compare plans. What the whole engine takes is "
            "predicted from its own listing, for the chosen plan alone."
        )
    rows = (
        (
            str(one.get("id", "–")),
            percent(one.get("share")),
            _time(one.get("predicted_s")),
            size(one.get("bytes")),
            decibel(one.get("sqnr_db")),
            _high(one.get("high") or ()),
            escape(", ".join(_marks(one))),
        )
        for one in points
    )
    body = plot(points) + fold(f"{len(points)} points", len(points), table(COLUMNS, rows, figures=range(1, 6)))
    return section("What else could be had", note, body)


def plot(points: Sequence[Record]) -> str:
    """SQNR over time by the table of costs, or over the share that is quantized where a time is not known."""
    timed = all(number(one.get("predicted_s")) is not None for one in points)
    prices = [number(one.get("predicted_s" if timed else "share")) or 0.0 for one in points]
    low, high = min(prices), max(prices)
    spell = _time if timed else percent
    scale = (WIDTH - LEFT - RIGHT - 40) / (high - low) if high > low else 0.0
    y, grid = decibels([one.get("sqnr_db") for one in points])
    drawn = [
        Dot(
            x=LEFT + 20 + (price - low) * scale,
            y=y(one.get("sqnr_db")),
            title=f"point {one.get('id', '–')}: {decibel(one.get('sqnr_db'))}, {_price(one, timed=timed)}"
            + "".join(f", {mark}" for mark in _marks(one)),
            kind="chosen" if one.get("chosen") else "dot" if one.get("measured") else "exact",
        )
        for one, price in zip(points, prices, strict=True)
    ]
    ends = "".join(
        f'<text x="{LEFT + 20 + (price - low) * scale:.1f}" y="{HEIGHT - 24}" class="axis mid">{spell(price)}</text>'
        for price in dict.fromkeys((low, high))
    )
    name = "time by the table of costs" if timed else "share of multiply-accumulates that is quantized"
    return figure(grid, "".join(map(str, drawn)), ends, below(name))


def _marks(one: Record) -> list[str]:
    return ["measured" if one.get("measured") else "predicted"] + ["chosen"] * bool(one.get("chosen"))


def _price(one: Record, *, timed: bool) -> str:
    return _time(one["predicted_s"]) if timed else percent(one.get("share"))


def _time(value: Any) -> str:
    seconds = number(value)
    return "–" if seconds is None else f"{1e6 * seconds:.4g} µs"


def _high(names: Sequence[str]) -> str:
    listed = escape(", ".join(names))
    return f'<span title="{listed}">{len(names)}</span>'
