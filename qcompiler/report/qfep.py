"""The section of the HTML report about the prefix of QFeP, and its line on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.report import plots
from qcompiler.report.figures import number, short, spelled
from qcompiler.report.page import code, fold, section, table

Record = Mapping[str, Any]
LOUD = 10.0


def line(found: Record) -> str:
    """One line: the prefix, what it does, and whether the texts lose their first token."""
    if not found["ids"]:
        return f"none: {found['why']}"
    worst = _worst(found["layers"])
    text = _tokens(found["ids"])
    if worst is not None:
        text += f": {worst['reader']} from {short(worst['before'])} to {short(worst['after'])} times the median token"
    if not found["baked"]:
        text += f", to be given by the caller ({found['file']})"
    if found["drops_first"]:
        text += f"; texts go without their first token {found['bos']}"
    return text


def qfep(found: Record | None) -> str:
    """Every activation's ratio in front of the prefix and behind it, and the prefixes that were tried."""
    if not found:
        return ""
    layers = found.get("layers") or ()
    note = _note(found)
    body = _plot(layers) + _table(layers) if layers and found["ids"] else ""
    return section("QFeP", escape(note), body + _trials(found))


def _note(found: Record) -> str:
    if not found["ids"]:
        return f"No prefix: {found['why']}."
    text = f"In front of every text: {_tokens(found['ids'])} ({found['rule']}; {found['why']})"
    text += ", inside the graph." if found["baked"] else f", which the caller gives by the cache ({found['file']})."
    if found.get("relative_error") is not None:
        text += (
            f" Against the float model that reads prefix and text, outputs differ by {short(found['relative_error'])}."
        )
    if found.get("drops_first"):
        text += f" The prefix has token {found['bos']}, which all texts begin with: they are to go without it."
    plain, with_it = number(found.get("float_score_without")), number(found.get("float_score_with"))
    if plain is not None and with_it is not None:
        text += f" Metric of the float model: {plain:.6g} without, {with_it:.6g} with the prefix."
    return text + " The plot shows largest over median token, mean over samples: without (dots), and behind it."


def _tokens(ids: Sequence[int]) -> str:
    return f"token{'s' * (len(ids) != 1)} {_spell(ids)}"


def _spell(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def _worst(layers: Sequence[Record]) -> Record | None:
    return max(layers, key=lambda row: number(row["before"]) or 0.0, default=None)


def _plot(layers: Sequence[Record]) -> str:
    series = [
        plots.Series(
            kind,
            tuple(
                plots.Point(number(row[key]), f"{row['tensor']}, {name}: {short(row[key])}", False) for row in layers
            ),
        )
        for kind, key, name in (("first", "before", "without"), ("second", "after", "behind the prefix"))
    ]
    legend = '<p class="legend"><i class="first"></i>without <i class="second"></i>behind the prefix</p>'
    return legend + plots.by_depth(series, "max / median", "activations in graph order", LOUD)


def _table(layers: Sequence[Record]) -> str:
    ordered = sorted(layers, key=lambda row: -(number(row["before"]) or 0.0))
    cells = (
        (
            code(row["tensor"]),
            spelled("ratio", row["before"]),
            spelled("ratio", row["after"]),
            code(row["reader"] or ""),
        )
        for row in ordered
    )
    columns = ("activation", "without", "behind the prefix", "read by")
    return fold(f"{len(layers)} activations", len(layers), table(columns, cells, figures=(1, 2), find=True))


def _trials(found: Record) -> str:
    trials = found.get("trials") or ()
    if not trials:
        return ""
    cells = ((code(_spell(one["ids"]) or "none"), short(one["worst"]), short(one["mean"])) for one in trials)
    columns = ("prefix", "worst max / median", "geometric mean of the worst layers")
    return fold(f"{len(trials)} prefixes tried", len(trials), table(columns, cells, figures=(1, 2)))
