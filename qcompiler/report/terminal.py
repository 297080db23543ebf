"""Tables for the terminal, from a manifest's plain data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from qcompiler.report import prediction, qfep, views, weight_only
from qcompiler.report.figures import (
    QUANTIZED,
    audited,
    bytes_of,
    held_out,
    is_table,
    moved,
    number,
    percent,
    ranges_line,
    score,
    seconds,
    short,
    size,
    spelled,
    split_off,
    verdict,
    warnings,
    words,
    work,
)
from qcompiler.report.search.rungs import goal_line, rungs_line

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType


Record = Mapping[str, Any]
SHOWN = 8
ROWS = {"layers": 15, "spikes": 15, "peaks": 10, "residuals": 10}  # of an inspection, if not everything is asked for
TITLES = {
    "stays_float": "Stays in high precision",
    "layers": "Layers, by multiply-accumulates",
    "spikes": "Activations by what INT8 leaves of them (ratio: largest token to median token, over channels: likewise)",
    "peaks": "Where they spike: channels ×their factor over the median channel, positions (input id) largest element",
    "residuals": "Residual Adds: the range of what a branch adds over the range of what it is added to",
}
HIDDEN = {"spikes": ("depth", "p99_99", "top_channels", "top_tokens")}  # columns that have no place on a terminal
VERDICTS = {"holds": "bold green", "doubtful": "bold yellow", "broken": "bold red"}


def summary(manifest: Record) -> Iterator[RenderableType]:
    """The verdict and the warnings; what was made, how good it is, what is in INT8; then what stayed float and why."""
    yield from first_lines(manifest)
    yield _facts(_summary_rows(manifest))
    yield from _kept_float(manifest)
    mismatches = (manifest.get("audit") or {}).get("mismatches") or ()
    if mismatches:
        yield _table(
            "The engine's listing does not confirm", ("node", "what"), ((m["node"], m["text"]) for m in mismatches)
        )


def first_lines(manifest: Record) -> Iterator[RenderableType]:
    """The verdict, then what the user should know before any figure."""
    found = manifest.get("verdict")
    if found:
        yield Text(verdict(found), style=VERDICTS.get(str(found.get("verdict")), "bold"))
    yield from _predicted(manifest.get("prediction"))
    if manifest.get("random_data"):
        yield Text("Random data: the ranges and every accuracy figure below are meaningless.", style="bold red")
    for warning in warnings(manifest):
        yield Text(f"! {warning}", style="yellow")
    begins = (manifest.get("verification") or {}).get("begins")
    if begins and found and found.get("verdict") != "holds":
        yield Text(str(begins))


def _predicted(found: Record | None) -> Iterator[RenderableType]:
    """The predicted times beside those in high precision, and what they leave out."""
    line = prediction.line(found)
    if line:
        yield Text(line, style="bold red" if prediction.slower(found) else "bold")
        yield Text(prediction.left_out(found), style="dim")


def artefacts(result: Any) -> Iterator[RenderableType]:
    """Where the files lie."""
    paths = (getattr(result, f"{what}_path", None) for what in ("engine", "qdq", "manifest", "report"))
    for path in paths:
        if path is not None:
            yield Text(f"→ {path}", style="cyan", overflow="fold")


def export(found: Record, folder: Path) -> Iterator[RenderableType]:
    """What was exported, its interface, and how far it is from torch in each step."""
    yield _facts(
        [
            ("exported", f"{found['kind']} → {', '.join(str(folder / name) for name in found['files'])}"),
            ("checked", f"largest error against torch {found['error']:.1e} of an output's largest value"),
            *_of_checkpoint(found.get("checkpoint") or {}),
            *((step, f"{error:.1e}") for step, error in found["steps"].items()),
        ]
    )
    for way in ("inputs", "outputs"):
        for file, tensors in found[way].items():
            yield _table(f"{way.capitalize()} of {file}", ("name", "shape"), _in_brief(tensors))


def _of_checkpoint(found: Record) -> Iterator[tuple[str, str]]:
    """Tensors of a folder that were dequantized or not used."""
    if found.get("dequantized"):
        yield "dequantized", f"{len(found['dequantized'])} weights, exactly, to float32"
    if found.get("unused"):
        names = found["unused"]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        yield "not used", f"{len(names)} tensors of the checkpoint: {', '.join(names[:4])}{more}"


def _in_brief(tensors: Record) -> Iterator[tuple[str, str]]:
    """One row for all layers of a cache."""
    for name, shape in tensors.items():
        layer = re.fullmatch(r"(.*)\.(\d+)\.(.*)", name)
        if layer is None:
            yield name, " × ".join(map(str, shape))
        elif layer[2] == "0":
            yield f"{layer[1]}.N.{layer[3]}", " × ".join(map(str, shape))


def plan_table(manifest: Record) -> RenderableType:
    """Every node's precision with the rule that decided."""
    records = manifest.get("plan") or ()
    total = max(sum(record["macs"] for record in records), 1)
    return _table(
        "Plan",
        ("node", "op", "precision", "rule", "MACs", "why"),
        ((r["node"], r["op"], r["precision"], r["rule"], percent(r["macs"] / total), r["why"]) for r in records),
    )


def verification(found: Record) -> Iterator[RenderableType]:
    """Each output, the metric, and the layer where the models part."""
    yield _table(f"Float and quantized on {views.judged_on(found)}", views.COLUMNS, views.rows(found))
    others = views.parts(found)
    if others:
        yield Text(f"A few samples of other parts of the data: {others}.")
    if found.get("score"):
        yield _facts([("metric", _score(found["score"]))])
    if found.get("begins"):
        yield Text(str(found["begins"]))
    for remark in found.get("remarks") or ():
        yield Text(str(remark), style="dim")
    for failure in found["failures"]:
        yield Text(f"! {failure}", style="bold red")
    if found["random"]:
        yield Text("Random data: these figures say nothing about accuracy.", style="bold red")


def passes(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Passes with what they do; with one only, its options too."""
    yield _table(None, ("pass", "what it does"), ((record["name"], record["help"]) for record in records))
    if len(records) != 1:
        return
    facts = [(name, ", ".join(records[0][name]) or "–") for name in ("requires", "provides", "breaks")]
    yield _facts([*facts, ("exact to", short(records[0]["exact_to"]))])
    if records[0]["options"]:
        options = ((o["name"], o["type"], o["default"] or "–") for o in records[0]["options"])
        yield _table(None, ("option", "type", "default"), options)


def inspection(found: Record, *, everything: bool = False) -> Iterator[RenderableType]:
    """Single figures as a list, lists of records as tables, which are cut unless `everything` is asked for."""
    yield _facts(
        [(words(key), spelled(key, value)) for key, value in found.items() if not is_table(value) and value != []]
    )
    for key, value in _tables(found):
        shown = value if everything else value[: ROWS.get(key, 40)]
        columns = list(dict.fromkeys(itertools.chain.from_iterable(shown)))
        columns = [column for column in columns if column not in HIDDEN.get(key, ())]
        cells = ([spelled(column, record.get(column)) for column in columns] for record in shown)
        yield _table(TITLES.get(key, words(key).capitalize()), [words(column) for column in columns], cells)
        if len(shown) < len(value):
            yield Text(f"… and {len(value) - len(shown)} more: --all lists them", style="dim")


def _tables(found: Record) -> Iterator[tuple[str, Sequence[Record]]]:
    """The tables of an inspection, the strongest rows first; tensors get a second one, of places."""
    for key, value in found.items():
        if not is_table(value):
            continue
        if key == "residuals":
            yield key, sorted(value, key=lambda record: -(number(record["ratio"]) or 0.0))
            continue
        yield key, value
        if key == "spikes":
            peaks = sorted(
                value, key=lambda record: -max(number(record.get(of)) or 0.0 for of in ("ratio", "over_channels"))
            )
            yield (
                "peaks",
                [{name: record.get(name) for name in ("tensor", "top_channels", "top_tokens")} for record in peaks],
            )


def _summary_rows(manifest: Record) -> Iterator[tuple[str, str]]:
    recipe, found = manifest["recipe"], manifest.get("verification") or {}
    target = manifest["target"]
    source = manifest.get("source") or {}
    name = ":".join(filter(None, (target["engine"], ",".join(target["sms"]))))
    yield "model", str(source.get("name", "–"))
    if manifest.get("ranges"):
        yield "ranges", ranges_line(manifest["ranges"])
    data = manifest.get("data") or {}
    if data.get("preprocess"):
        yield "data", f"{data['files']}: {data['preprocess']}"
    if manifest.get("export"):
        yield "exported", f"{manifest['export']['kind']}, off by {manifest['export']['error']:.1e} from torch"
    held = manifest.get("holds")  # of what was built as it came
    types = recipe["precision"] if held is None else " and ".join(held) or "no quantized type"
    yield "compiled to", f"{types} for {name}, the rest in {target['high_precision']}"
    if found.get("score"):
        yield "metric", _score(found["score"])
    if found:
        yield "SQNR", views.worst(found)
    if manifest.get("macs"):
        yield "multiply-accumulates", work(manifest["macs"])
    if manifest.get("goal"):
        yield "goal", goal_line(manifest["goal"]).removeprefix("Goal: ")
    if manifest.get("rungs"):
        yield "methods", rungs_line(manifest["rungs"])
    if manifest.get("qfep"):
        yield "QFeP", qfep.line(manifest["qfep"])
    if manifest.get("llm_int8"):
        yield "LLM.int8()", split_off(manifest["llm_int8"])
    if manifest.get("weight_only"):
        yield "weight-only", weight_only.line(manifest["weight_only"])
    if manifest.get("audit"):
        yield "engine's own listing", audited(manifest["audit"])
    yield "size", _sizes(manifest)
    if manifest.get("cache"):
        cache = manifest["cache"]
        types = "/".join(sorted({pair["dtype"] for pair in cache["pairs"]}))
        yield "key-value cache", f"{len(cache['pairs'])} tensors in {types}, {size(cache['bytes_per_token'])} a token"
    if manifest.get("timings"):
        timings = manifest["timings"]
        parts = ", ".join(f"{stage} {seconds(value)}" for stage, value in _largest(timings)[:4])
        told = f", estimated {seconds(manifest['estimate']['seconds'])}" if manifest.get("estimate") else ""
        yield "time", f"{seconds(sum(timings.values()))}{told} ({parts}{', …' * (len(timings) > 4)})"
    if manifest.get("peak_memory_mb"):
        yield "peak memory", f"{manifest['peak_memory_mb']:.0f} MiB"


def _score(found: Record) -> str:
    held = held_out(found)
    return f"{score(found)} ({moved(found)}{'; ' * bool(held)}{held}) {found['name']}"


def _sizes(manifest: Record) -> str:
    parts = [f"float {size(bytes_of(manifest.get('source')))}"]
    qdq = (manifest.get("files") or {}).get("qdq")
    if qdq:
        parts.append(f"quantized ONNX {size(bytes_of(qdq))}")
    if manifest.get("engine"):
        parts.append(f"engine {size(manifest['engine']['bytes'])}")
    return ", ".join(parts)


def _kept_float(manifest: Record) -> Iterator[RenderableType]:
    records = [
        record for record in manifest.get("plan") or () if record["macs"] and record["precision"] not in QUANTIZED
    ]
    if not records:
        return
    total = max(sum(record["macs"] for record in manifest["plan"]), 1)
    records.sort(key=lambda record: -record["macs"])
    columns = ("not quantized", "op", "in", "MACs", "why")
    cells = ((r["node"], r["op"], r["precision"], percent(r["macs"] / total), r["why"]) for r in records[:SHOWN])
    yield _table(None, columns, cells)
    if len(records) > SHOWN:
        left = sum(record["macs"] for record in records[SHOWN:])
        yield Text(
            f"… and {len(records) - SHOWN} more with {percent(left / total)} of the MACs: see the report", style="dim"
        )


def _largest(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda part: -part[1])


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        figures = column in ("MACs", "macs", "share", "SQNR", "agree", "cosine", "max error", "top-1")
        table.add_column(column, overflow="fold", justify="right" if figures else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _digits(value: Any) -> str:
    figure = number(value)
    return "–" if figure is None else f"{figure:.6f}"
