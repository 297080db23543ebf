"""What was asked of the plan and how it stands to that, in a line; and what of a metric is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompiler.report.figures import decibel, number, percent

Record = Mapping[str, Any]


def line(found: Record) -> str:
    """`metric loses at most 0.50 %: held with 0.22 % ± 0.16 %; the cheapest plan holds the goal`."""
    asked, reached = _asked(found), number(found.get("figure"))
    why = str(found.get("why") or "")
    if reached is None:
        return f"{asked}; {why}" if why else asked
    word = "held" if found.get("met") else "missed"
    whole = found.get("in_sample")
    sample = f" (by all of the metric: {whole})" if whole else ""
    return f"{asked}: {word} with {_figure(found, 'figure')} ± {_figure(found, 'margin')}{sample}; {why}"


def held_out(score: Record) -> str:
    """What the half of a metric lost that nothing was chosen by; "" where nothing was, or nothing can be said."""
    halves = score.get("halves")
    if not halves:
        return ""
    if not halves.get("split"):
        return "in sample: all of it chose"
    return f"held out, the other half alone: {_signed(halves.get('judging_loss'))}"


def _asked(found: Record) -> str:
    if found.get("kind") == "metric":
        return f"metric loses at most {percent(found.get('target'), 2)}"
    return f"{decibel(found.get('target'))} at the worst view"


def _figure(found: Record, key: str) -> str:
    return percent(found.get(key), 2) if found.get("kind") == "metric" else decibel(found.get(key))


def _signed(loss: Any) -> str:
    """A loss as a change of the score, relative to float: a loss is negative."""
    return f"{-100 * (number(loss) or 0.0) + 0.0:+.2f} %".replace("-", "−")
