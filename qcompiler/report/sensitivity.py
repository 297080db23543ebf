"""The layer study of `qcompiler sensitivity` as a table for the terminal and as an HTML file, from plain data alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from qcompiler.report.figures import decibel, number, percent
from qcompiler.report.page import page, section, table

if TYPE_CHECKING:
    from rich.console import RenderableType


Record = Mapping[str, Any]
SHOWN = 15
EXACT_DB = 200.0
SHADED_DB = 20.0  # so far below the budget a cell is as dark as it gets
NOTE = (
    "One row per group of layers that read the same activation, each group rounded alone. Under the name of a format: "
    "SQNR of the model's outputs in dB. W / A only: SQNR of the layers' own outputs with only weights or only "
    "activations in {first}; the lower one is the culprit. Tokens, channels: largest over median, and which channel. "
    "Rest: predicted SQNR of the outputs in {first} if this group and all above it stay float."
)
DOUBT = " ±: standard error of {first}, in dB; ≈: which of this row and the next one is worse is not certain."


def terminal(found: Record, *, everything: bool = False) -> Iterator[RenderableType]:
    """What was studied, each format, and the groups, worst first."""
    yield Text("\n".join(_intro(found)))
    formats = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("format", "all layers in it (predicted)", "engine"):
        formats.add_column(column)
    for row in found["formats"]:
        formats.add_row(*(Text(cell) for cell in _format(row)))
    yield formats
    before = _beginning(found["groups"])
    groups = found["groups"] if everything else found["groups"][:SHOWN]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in _columns(found):
        words = column in ("layers", "helps")
        rows.add_column(
            column, overflow="fold", justify="left" if words else "right", min_width=20 if column == "layers" else None
        )
    for group in groups:
        rows.add_row(*(Text(cell) for cell in _cells(group, _names(found), before, estimated=_estimated(found))))
    if before:
        yield Text(f"names of layers begin with {before}", style="dim")
    yield rows
    if len(groups) < len(found["groups"]):
        yield Text(f"… and {len(found['groups']) - len(groups)} more: --all lists them", style="dim")
    yield Text(_note(found), style="dim")


def html(found: Record) -> str:
    """The report as the text of an HTML file that needs nothing else. Everything from the model is escaped."""
    names, budget = _names(found), float(found["budget_db"])
    title = f"{found['file']}: sensitivity"
    lines = "".join(f'<p class="dim">{escape(line)}</p>' for line in _intro(found))
    formats = [[escape(cell) for cell in _format(row)] for row in found["formats"]]
    groups = [list(_shaded(group, names, budget, estimated=_estimated(found))) for group in found["groups"]]
    columns = _columns(found)
    return page(
        title,
        (
            f"<header><h1>{escape(title)}</h1>{lines}</header>",
            section("Formats", "", table(("format", "all layers in it (predicted)", "engine"), formats, figures=(1,))),
            section(
                "Layers",
                _note(found),
                table(columns, groups, figures=range(1, len(columns) - 1), find=True),
            ),
        ),
    )


def _intro(found: Record) -> Iterator[str]:
    yield f"{found['file']} for {found['target']}; {found['data']}"
    if _estimated(found):
        yield _how(found)
    yield f"a group that leaves less than {decibel(found['budget_db'])} at the outputs alone needs a remedy"
    if found["stays_float"]:
        rules = ", ".join(f"{count} {rule}" for rule, count in found["stays_float"].items())
        yield f"not studied, float by rule: {rules}"


def _estimated(found: Record) -> bool:
    return bool(found["measured"]["how"] == "estimate")


def _how(found: Record) -> str:
    """How good the estimate is thought to be."""
    one = found["measured"]
    told = {name: number(value) for name, value in one["rank_correlation"].items()}
    ranks = ", ".join(f"{name} {_correlation(value)}" for name, value in told.items())
    return (
        f"an estimate from {one['samples']} of {one['of']} samples; rank correlation to be expected with all of them: "
        f"{ranks}; --exact runs all"
    )


def _correlation(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _note(found: Record) -> str:
    return (NOTE + DOUBT * _estimated(found)).format(first=_names(found)[0])


def _names(found: Record) -> list[str]:
    return [row["format"] for row in found["formats"]]


def _format(row: Record) -> tuple[str, str, str]:
    engine = "can be built" if row["buildable"] else f"not buildable: {row['why_not']}"
    return str(row["format"]), decibel(row["predicted_db"]), engine


def _beginning(groups: Sequence[Record]) -> str:
    """The folders that all names of layers have in common; nothing where there is a single one."""
    parts = [str(group["layers"][0]).split("/")[:-1] for group in groups]
    same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return "".join(f"{level[0]}/" for level in same) if len(parts) > 1 else ""


def _columns(found: Record) -> tuple[str, ...]:
    first, *others = _names(found)
    doubt = ("±",) * _estimated(found)
    return ("layers", "MACs", first, *doubt, *others, "W / A only", "tokens", "channels", "rest", "helps")


def _cells(group: Record, names: Sequence[str], before: str = "", *, estimated: bool = False) -> list[str]:
    effects, layers = group["effects"], group["layers"]
    first = effects[names[0]]
    more = f" +{len(layers) - 1}" if len(layers) > 1 else ""
    spot = "" if group["channel"] is None else f" ({group['channel']})"
    return [
        f"{layers[0].removeprefix(before)}{more}",
        percent(group["share"]),
        _figure(first["outputs_db"]),
        *([_doubt(group, first)] if estimated else []),
        *(_figure(effects[name]["outputs_db"]) for name in names[1:]),
        f"{_figure(first['weights_db'])} / {_figure(first['activations_db'])}",
        _times(group["tokens"]),
        f"{_times(group['channels'])}{spot}",
        _figure(first["rest_db"]),
        ", ".join(group["helps"]) or "–",
    ]


def _shaded(group: Record, names: Sequence[str], budget: float, *, estimated: bool) -> Iterator[str]:
    """Cells of HTML; the outputs' figures are the darker, the further they are below the budget."""
    shown = [names[0], *([""] if estimated else []), *names[1:]]  # behind the first one stands its error
    for i, cell in enumerate(_cells(group, names, estimated=estimated)):
        text = escape(cell)
        if i == 0:
            listed = escape(", ".join(group["layers"]))
            yield f'<code title="{listed} (reads {escape(str(group["activation"]))})">{text}</code>'
            continue
        name = shown[i - 2] if 0 <= i - 2 < len(shown) else ""
        value = number(group["effects"][name]["outputs_db"]) if name else None
        if value is None or value >= budget:
            yield text
            continue
        share = min(max((budget - value) / SHADED_DB, 0.1), 1.0)
        yield f'<span style="background:color-mix(in srgb,var(--poor) {60 * share:.0f}%,transparent)">{text}</span>'


def _figure(value: Any) -> str:
    figure = number(value)
    if figure is None or figure >= EXACT_DB:
        return "–" if figure is None else "exact"
    return f"{figure:.1f}".replace("-", "−")


def _doubt(group: Record, effect: Record) -> str:
    """The standard error, and whether the order with the next row is certain."""
    error = number(effect["error_db"])
    text = "" if error is None else f"{error:.1f}"
    return text if group["order_certain"] else f"{text} ≈".strip()


def _times(value: Any) -> str:
    figure = number(value)
    return "–" if figure is None else f"{figure:.3g}×"
