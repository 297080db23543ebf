"""The goal, and the methods that were tried for it, in order: what was observed, what each gained, what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.report.figures import decibel, number, percent, seconds, short
from qcompiler.report.page import section, table

Record = Mapping[str, Any]
KINDS = {
    "sqnr": "an SQNR of",
    "metric": "a loss of the metric of at most",
    "default": "an SQNR of",
    "likelihood": "a perplexity that rises by at most",
}
COLUMNS = ("method", "", "why", "SQNR after it", "gain", "quantized", "time", "runs")


def rungs(records: Sequence[Record], goal: Record | None = None) -> str:
    """A row a method; nothing where nobody recorded any, and no goal."""
    if not records and not goal:
        return ""
    note = f"{goal_line(goal)} " if goal else ""
    if records:
        note += "Methods in the order in which they are tried, each only where what was observed says that it can help."
    cells = (
        (
            escape(str(one["name"])),
            escape(state(one)),
            escape(str(one.get("why") or "–")),
            decibel(one.get("sqnr_db")),
            _gain(one.get("gain_db")),
            percent(one.get("share")),
            seconds(one.get("seconds")),
            "–" if one.get("runs") is None else str(one["runs"]),
        )
        for one in records
    )
    return section("How far it had to go", note.strip(), table(COLUMNS, cells, figures=range(3, 8)) if records else "")


def goal_line(goal: Record) -> str:
    """`Goal: an SQNR of 25.0 dB and a margin of 1.0 dB, at the least time: met.`, with why it is this goal."""
    kind = "likelihood" if goal.get("likelihood") else str(goal.get("kind"))
    text = f"Goal: {KINDS.get(kind, kind)} {_quantity(goal, 'target')}"
    if number(goal.get("margin")):
        text += f" and a margin of {_quantity(goal, 'margin')}"
    if goal.get("objective"):
        text += f", chosen by {goal['objective']}"
    met = goal.get("met")
    text += "" if met is None else ": met" if met else ": not met"
    if goal.get("in_sample"):
        text += f", in sample: all of the metric chose, as {goal['in_sample']}"
    return f"{text}. {goal['why']}" if goal.get("why") else f"{text}."


def rungs_line(records: Sequence[Record]) -> str:
    """`ranges +2.1 dB, smooth-quant +4.0 dB (12 s); tried in vain: qfem; not needed: equalize` for the terminal."""
    kept = [_spent(one) for one in records if one.get("kept")]
    vain = [str(one["name"]) for one in records if one.get("tried") and not one.get("kept")]
    left = [str(one["name"]) for one in records if not one.get("tried") and not one.get("kept")]
    parts = [", ".join(kept)]
    parts += [f"tried in vain: {', '.join(vain)}"] if vain else []
    parts += [f"not tried: {', '.join(left)}"] if left else []
    return "; ".join(filter(None, parts))


def state(one: Record) -> str:
    """What became of a method."""
    return "kept" if one.get("kept") else "tried, not kept" if one.get("tried") else "not tried"


def _spent(one: Record) -> str:
    gain = f" {_gain(one['gain_db'])}" if one.get("gain_db") is not None else ""
    took = f" ({seconds(one['seconds'])})" if one.get("seconds") else ""
    return f"{one['name']}{gain}{took}"


def _gain(value: Any) -> str:
    figure = number(value)
    return f"+{decibel(value)}" if figure is not None and figure > 0 else decibel(value)


def _quantity(goal: Record, key: str) -> str:
    """A target or a margin in the goal's unit: dB, or a part of the metric."""
    value = goal.get(key)
    if value is None:
        return "nothing in particular"
    if goal.get("likelihood") and key == "target":
        return f"{percent(math.expm1(10 ** (-float(value) / 10)), 1)} (KL at {decibel(value)})"
    if goal.get("unit") == "dB":
        return decibel(value)
    return percent(value, 2) if goal.get("unit") == "relative" else short(value)
