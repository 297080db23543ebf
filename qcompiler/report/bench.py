"""What `qcompiler bench` measured: a table for the terminal, an HTML file and a picture, from plain data alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from qcompiler.report.figures import number, percent, size
from qcompiler.report.page import page, section, table
from qcompiler.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, below, figure, label, tick

if TYPE_CHECKING:
    from rich.console import RenderableType


Record = Mapping[str, Any]
COLOURS = ("--fp16", "--blue", "--second", "--good", "--fp8", "--int4", "--poor", "--bf16")  # the first model is grey
PRINTED = ("#9aa7bd", "#2f6fed", "#d97706", "#0f8a5f", "#7c4dff", "#0891b2", "#c2410c", "#b59fcb")
RERUN = "without a cache: the whole text is read anew for every token"


class Metric(NamedTuple):
    """A key of the results, how it is called, and the axis of its plot."""

    key: str
    title: str
    axis: str
    scale: float


METRICS = {
    "ordinary": (
        Metric("latency", "Latency", "milliseconds, lower is better", 1000),
        Metric("throughput", "Throughput", "samples per second, higher is better", 1),
    ),
    "decoder": (
        Metric("prefill", "Prefill: time to the first token", "milliseconds, lower is better", 1000),
        Metric("decode", "Decode: time between tokens", "milliseconds, lower is better", 1000),
        Metric("throughput", "Throughput of whole answers", "tokens per second, higher is better", 1),
    ),
}


def terminal(found: Record) -> Iterator[RenderableType]:
    """The models, then a row for each case and model."""
    models = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "runs on", "size", "loaded in", "peak memory"):
        models.add_column(column, overflow="fold")
    for row in found["models"]:
        models.add_row(*(Text(cell) for cell in _model(row)[:5]))
    yield models
    metrics = METRICS[found["kind"]]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    prompts = found["kind"] == "decoder"
    columns = ["batch", *(["prompt"] if prompts else []), "model"]
    for metric in metrics:
        columns += [_short(metric), "", "±"]
    for column in [*columns, *(["same token"] if prompts else [])]:
        rows.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for case in found["cases"]:
        for i, result in enumerate(case["results"]):
            where = [case["batch"], *([case["prompt"]] if prompts else [])]
            cells = ["" if i else str(value) for value in where] + [str(result["model"])]
            for metric in metrics:
                cells += _cells(result.get(metric.key), metric)
            cells += [percent(result.get("same_tokens"))] if prompts else []
            rows.add_row(*(Text(cell) for cell in cells))
    yield rows
    yield Text("\n".join(_notes(found)), style="dim")


def html(found: Record) -> str:
    """The report as the text of an HTML file that needs nothing else. Everything from the models is escaped."""
    names = [str(row["name"]) for row in found["models"]]
    columns = ("model", "runs on", "size", "loaded in", "peak memory", "decode", "cache")
    models = [[escape(cell) for cell in _model(row)] for row in found["models"]]
    lines = "".join(f'<p class="dim">{escape(line)}</p>' for line in _notes(found))
    parts = [
        f"<header><h1>Benchmark of {len(names)} model{'s' * (len(names) != 1)}</h1>{lines}</header>",
        section("Models", "", table(columns, models, figures=(2, 3, 4))),
    ]
    parts += [_section(found, metric, names) for metric in METRICS[found["kind"]]]
    return page("Benchmark", parts)


def png(found: Record) -> bytes:
    """The plots of all metrics, one below the other, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = METRICS[found["kind"]]
    names = [str(row["name"]) for row in found["models"]]
    drawing = Figure(figsize=(9.6, 3.1 * len(metrics)), dpi=110, layout="constrained")
    FigureCanvasAgg(drawing)
    cases = [_spell(case) for case in found["cases"]]
    for place, metric in enumerate(metrics):
        axes = drawing.add_subplot(len(metrics), 1, place + 1)
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            known = [case["results"][i].get(metric.key) for case in found["cases"]]
            at = [x + (i - (len(names) - 1) / 2) * width for x in range(len(cases))]
            values, low, high = (
                [metric.scale * (one or {}).get(key, 0.0) for one in known] for key in ("median", "low", "high")
            )
            down = [max(value - below_, 0.0) for value, below_ in zip(values, low, strict=True)]
            up = [max(above - value, 0.0) for value, above in zip(values, high, strict=True)]
            axes.bar(at, values, width * 0.92, label=name, color=PRINTED[i % len(PRINTED)], yerr=(down, up), capsize=2)
        axes.set_title(metric.title, loc="left", fontsize=11)
        axes.set_ylabel(metric.axis.partition(",")[0], fontsize=9)
        axes.set_xticks(range(len(cases)), cases, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        if not place:
            axes.legend(frameon=False, fontsize=9)
    stream = io.BytesIO()
    drawing.savefig(stream, format="png")
    return stream.getvalue()


def _section(found: Record, metric: Metric, names: Sequence[str]) -> str:
    columns = ("batch", "prompt", "model", "median", "quartiles", "p50", "p90", "p99", "spread", "against the first")
    rows = []
    for case in found["cases"]:
        for result in case["results"]:
            one = result.get(metric.key)
            if one is not None:
                rows.append([escape(cell) for cell in _row(case, result, one, metric)])
    if not rows:
        return ""
    note = "Bars: medians of the rounds, with their quartiles. Percentiles are over all single measurements."
    if metric.key == "decode" and any(row["decode"] == "rerun" for row in found["models"]):
        note += f" Models {RERUN}."
    body = _bars(found, metric, names) + _legend(names) + table(columns, rows, figures=(0, 1, *range(3, 10)))
    return section(metric.title, note, body)


def _row(case: Record, result: Record, one: Record, metric: Metric) -> Iterator[str]:
    yield str(case["batch"])
    yield "–" if case["prompt"] is None else str(case["prompt"])
    yield str(result["model"])
    yield _value(one["median"], metric)
    yield f"{_value(one['low'], metric)} … {_value(one['high'], metric)}"
    yield from (_value(one[key], metric) for key in ("p50", "p90", "p99"))
    yield percent(one["spread"])
    better = one["better"]
    yield "–" if better is None else f"×{better['median']:.2f} ({better['low']:.2f} … {better['high']:.2f})"


def _bars(found: Record, metric: Metric, names: Sequence[str]) -> str:
    """Groups of bars, one group for each case, one bar for each model."""
    known = [case["results"][i].get(metric.key) for case in found["cases"] for i in range(len(names))]
    most = max((one["high"] for one in known if one is not None), default=0.0) * metric.scale * 1.08 or 1.0
    step = _round((most or 1.0) / 5)
    parts = [tick(_y(k * step, most), f"{k * step:g}") for k in range(math.floor(most / step) + 1)]
    group = (WIDTH - LEFT - RIGHT) / len(found["cases"])
    width = min(group * 0.8 / len(names), 90.0)
    for at, case in enumerate(found["cases"]):
        middle = LEFT + (at + 0.5) * group
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 24}" class="axis mid">{escape(_spell(case))}</text>')
        for i, name in enumerate(names):
            one = case["results"][i].get(metric.key)
            if one is not None:
                x = middle + (i - len(names) / 2) * width
                parts.append(_bar(x, width * 0.92, one, metric, most, COLOURS[i % len(COLOURS)], name))
    named = "batch and prompt" if found["kind"] == "decoder" else "batch"
    return figure(*parts, label(metric.axis), below(named))


def _bar(x: float, width: float, one: Record, metric: Metric, most: float, colour: str, name: str) -> str:
    top, low, high = (_y(one[key] * metric.scale, most) for key in ("median", "low", "high"))
    middle = x + width / 2
    title = f"<title>{escape(name)}: {_value(one['median'], metric)}</title>"
    return (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
        f'style="fill:var({colour})">{title}</rect>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}" style="stroke:var(--ink)"/>'
    )


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<i style="background:var({COLOURS[i % len(COLOURS)]})"></i>{escape(name)}' for i, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _model(row: Record) -> list[str]:
    memory, per_token = number(row["peak_memory_mb"]), row["cache_bytes_per_token"]
    return [
        str(row["name"]),
        f"{row['engine']} {row['version']}, {row['runs_on']}".replace(" ,", ","),
        size(row["bytes"]),
        f"{row['open_seconds']:.2f} s",
        "–" if memory is None else f"{memory:.0f} MiB",
        {"cache": "with a cache", "rerun": RERUN}.get(row["decode"], "–"),
        "–" if per_token is None else f"{size(per_token)} per token",
    ]


def _notes(found: Record) -> Iterator[str]:
    used, where = found["settings"], found["environment"]
    cut = "" if used["rounds"] == used["rounds_asked"] else f" of {used['rounds_asked']}: the time was up"
    yield (
        f"{used['rounds']} round{'s' * (used['rounds'] != 1)}{cut}, models in turns; {used['threads']} "
        f"thread{'s' * (used['threads'] != 1)}; {used['data']}"
        + (f", answers of {used['generate']} tokens" if used["generate"] else "")
    )
    busy = number(where["load_average"])
    if busy is not None and busy > (where["processors"] or 1) * 0.5:
        yield (
            f"the machine was busy: load {busy:.1f} on {where['processors']} processors before the start; compare the "
            "ratios, not the times"
        )
    yield "×: how many times better than the first model, median of the rounds; ±: quartiles of the rounds over median"
    rerun = [str(row["name"]) for row in found["models"] if row["decode"] == "rerun"]
    if rerun:
        yield f"* {', '.join(rerun)} {RERUN}"


def _short(metric: Metric) -> str:
    unit = {"latency": "latency", "prefill": "prefill", "decode": "decode/token"}.get(metric.key)
    return unit or metric.axis.partition(" ")[0] + "/s"


def _cells(one: Record | None, metric: Metric) -> list[str]:
    if one is None:
        return ["–", "", ""]
    better = one["better"]
    mark = "*" if one.get("rerun") else ""
    ratio = "" if better is None else f"×{better['median']:.2f}"
    return [_value(one["median"], metric) + mark, ratio, percent(one["spread"], 0)]


def _value(value: Any, metric: Metric) -> str:
    """Milliseconds for latencies; three digits."""
    figure_ = (number(value) or 0.0) * metric.scale
    digits = max(0, 2 - math.floor(math.log10(figure_))) if figure_ > 0 else 0
    text = f"{figure_:.{min(digits, 4)}f}"
    return f"{text} ms" if metric.scale == 1000 else text


def _spell(case: Record) -> str:
    return str(case["batch"]) if case["prompt"] is None else f"{case['batch']} × {case['prompt']}"


def _round(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted * 0.999)


def _y(value: float, most: float) -> float:
    return TOP + (1 - min(value / most, 1.0)) * (HEIGHT - TOP - BOTTOM)
