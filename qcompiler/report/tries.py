"""The section of the HTML report about plans that were tried until the gates held, or nothing was left to give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.report.figures import decibel, percent
from qcompiler.report.page import OPEN_ROWS, fold, section, table

Record = Mapping[str, Any]


def tries(records: Sequence[Record]) -> str:
    """What each was aimed at, what it reached, and which gate it missed; nothing where the first one was good."""
    if not records or (len(records) == 1 and not records[0]["missed"]):
        return ""
    columns = ("try", "goal", "SQNR", "metric lost", "quantized", "missed")
    cells = (
        (
            str(number),
            decibel(one["goal_db"]),
            decibel(one["sqnr_db"]),
            percent(one["drop"], 2),
            percent(one["share"]),
            escape(str(one["missed"] or "–")),
        )
        for number, one in enumerate(records, 1)
    )
    body = table(columns, cells, figures=range(1, 5))
    last = "the last one is what was written" if not records[-1]["missed"] else "none holds what was asked for"
    looks = records[-1].get("looks") or 1
    again = f" What judges was looked at {looks} times: the last figures are not quite held out." if looks > 1 else ""
    note = (
        "Where a gate is missed, the compiler goes on to methods that were not needed before, gives layers back, and "
        f"tries again; {last}.{again}"
    )
    return section("Tries", note, fold(f"{len(records)} plans", min(len(records), OPEN_ROWS), body))
