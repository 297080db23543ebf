"""What `qcompiler diff` found, for the terminal: what is equal is not listed, what changed stands as `A → B`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from qcompiler.report.figures import cell, decibel, number, percent, seconds, short, size

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = Mapping[str, Any]
SHOWN: Final = 12  # rows of a table, unless everything is asked for
_NAMED: Final = 3  # nodes of a row that are named
_DIGEST: Final = 64  # hex digits of a fingerprint, of which twelve tell it from another


def terminal(found: Record, *, everything: bool = False) -> Iterator[RenderableType]:
    """One line what it comes to; then what was asked, what was chosen, what it costs and how good it is."""
    a, b = found["manifests"]["a"], found["manifests"]["b"]
    yield Text(f"{a} → {b}: {'the same, times apart' if found['same'] else _in_short(found)}", style="bold")
    for text in found["worse"]:
        yield Text(f"! worse: {text}", style="bold red")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found):
        facts.add_row(Text(name), Text(value))
    yield facts
    yield from _table(
        "Accuracy", ("view", "A", "B", "B loses"), [*map(_view, _moved(found["accuracy"]))], everything=everything
    )
    yield from _table(
        "Precision", ("nodes", "A", "B", "rule", "why"), [*map(_type, found["precision"])], everything=everything
    )
    both = [row for row in found["ranges"] if row["a"] is not None and row["b"] is not None]
    yield from _table("Ranges", ("tensor", "A", "B", "B / A", "by"), [*map(_range, both)], everything=everything)
    for side, other in (("a", "b"), ("b", "a")):
        alone = [f"{row['tensor']} ({short(row[side])})" for row in found["ranges"] if row[other] is None]
        if alone:
            yield Text(f"only {side.upper()} quantizes {_named(alone, len(alone) if everything else _NAMED)}")
    for kind, sign in (("new", "+"), ("gone", "−")):
        for text in found["warnings"][kind]:
            yield Text(f"{sign} warning: {text}", style="yellow" if kind == "new" else "dim")


def _in_short(found: Record) -> str:
    """Which things differ, in words."""
    moved = {
        "versions": found["versions"],
        "model, data or target": found["source"],
        "recipe": found["recipe"],
        "precision": found["precision"],
        "ranges": found["ranges"],
        "accuracy": _moved(found["accuracy"]),
        "verdict": _moved([found["verdict"]]),
        "size": _moved(found["sizes"]),
        "predicted time": _moved(found["time"]),
        "warnings": found["warnings"]["new"] or found["warnings"]["gone"],
    }
    return f"different in {', '.join(name for name, rows in moved.items() if rows) or 'the share that is quantized'}"


def _moved(rows: Sequence[Record]) -> list[Record]:
    return [row for row in rows if row["a"] != row["b"]]


def _facts(found: Record) -> Iterator[tuple[str, str]]:
    yield from ((str(row["what"]), _arrow(row)) for row in (*found["versions"], *found["source"]))
    yield from ((f"recipe {row['what']}", _arrow(row)) for row in found["recipe"])
    yield "verdict", _arrow(found["verdict"])
    yield "quantized", _arrow(found["share"], percent)
    worst = next((row for row in found["accuracy"] if row["what"] == "worst view"), None)
    if worst is not None:
        yield "SQNR, worst view", _arrow(worst, decibel)
    for row in found["time"]:
        times = f" (× {short(row['ratio'])})" if row["ratio"] is not None and row["a"] != row["b"] else ""
        yield f"predicted on {row['sm']}", f"{_arrow(row, _micro)}{times}"
    yield from ((str(row["what"]), _arrow(row, size)) for row in found["sizes"])
    yield "compiled in", _arrow(found["seconds"], seconds)


def _arrow(row: Record, spell: Any = None) -> str:
    """`A → B`, or the one value where both are equal."""
    a, b = ((spell or _short)(row[side]) for side in ("a", "b"))
    return a if row["a"] == row["b"] else f"{a} → {b}"


def _short(value: Any) -> str:
    """A value of a recipe or a version; of fingerprints the beginning."""
    text = cell(value)
    return f"{text[:12]}…" if len(text) == _DIGEST and text.isalnum() else text


def _micro(value: Any) -> str:
    return "–" if number(value) is None else f"{short(value)} µs"


def _view(row: Record) -> list[str]:
    figures = [decibel(row[side]) if row["unit"] == "dB" else short(row[side]) for side in ("a", "b")]
    if row["loss"] is None:
        loss = "–"
    elif row["unit"] == "dB":
        loss = decibel(row["loss"])
    else:
        loss = percent(row["loss"], 2)
    return [f"{row['what']}{'' if row['judged'] else ' (not judged by)'}", *figures, loss.replace("-", "−")]


def _type(row: Record) -> list[str]:
    return [
        _named(row["nodes"]),
        *(str(row[side] or "not there") for side in ("a", "b")),
        str(row["rule"]),
        str(row["why"]),
    ]


def _named(names: Sequence[str], most: int = _NAMED) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _range(row: Record) -> list[str]:
    sides = [f"{short(row[side])} {row[f'dtype_{side}'] or ''}".strip() for side in ("a", "b")]
    by = _arrow({"a": row["calibrator_a"], "b": row["calibrator_b"]})
    return [str(row["tensor"]), *sides, short(row["ratio"]), by]


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, everything: bool
) -> Iterator[RenderableType]:
    if not rows:
        return
    shown = rows if everything else rows[:SHOWN]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("B loses", "B / A") else "left")
    for row in shown:
        table.add_row(*map(Text, row))
    yield table
    if len(shown) < len(rows):
        yield Text(f"… and {len(rows) - len(shown)} more: --all lists them", style="dim")
