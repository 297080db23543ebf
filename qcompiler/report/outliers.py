"""Sections of the HTML report about outliers: where they are, and what was done about them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.report import plots
from qcompiler.report.figures import channels, decibel, number, percent, short, spelled, split_off, tokens
from qcompiler.report.page import code, fold, section, table

Record = Mapping[str, Any]
LOUD = 10.0  # a ratio above which a few tokens or channels stand out


def spikes(records: Sequence[Record]) -> str:
    """The activations of an inspection: the worst in a table, all of them by depth."""
    if not records:
        return ""
    ordered = sorted(records, key=lambda record: record["depth"])
    columns = ("activation", "INT8", "amax", "crest", "kurtosis", "max / median token", "channels", "tokens", "readers")
    cells = (
        (
            code(record["tensor"]),
            decibel(record["int8_db"]),
            *(spelled(of, record[of]) for of in ("amax", "crest", "kurtosis", "ratio")),
            escape(channels(record["top_channels"])),
            escape(tokens(record["top_tokens"])),
            _readers(record),
        )
        for record in records
    )
    note = _spoken(records) + " " + _LEGEND
    body = _ratios(ordered, None, ()) + fold(
        f"{len(records)} activations, those that INT8 holds worst first",
        len(records),
        table(columns, cells, figures=range(1, 6), find=True),
    )
    return section("Activations", note, body)


def activations(records: Sequence[Record], found: Record | None) -> str:
    """Every activation's ratio by depth with QFeM's threshold, and the table behind it."""
    if not records:
        return ""
    spared = {one["tensor"] for one in (found or {}).get("chosen") or ()}
    columns = ("activation", "max / median token", "amax", "kurtosis", "channels", "tokens", "readers")
    cells = (
        (
            code(record["tensor"]),
            *(spelled(of, record[of]) for of in ("ratio", "amax", "kurtosis")),
            escape(channels(record["top_channels"])),
            escape(tokens(record["top_tokens"])),
            _readers(record),
        )
        for record in sorted(records, key=lambda record: -(number(record["ratio"]) or 0.0))
    )
    body = _ratios(records, number((found or {}).get("alpha")), spared)
    body += fold(f"{len(records)} activations", len(records), table(columns, cells, figures=range(1, 4), find=True))
    return section("Outliers", _spoken(records) + " " + _LEGEND, body)


_LEGEND = (
    "The plot shows the largest |x| of a token over that of the median token, mean over samples. In the table, "
    "channels have their factor over the median channel, tokens their position, input id and largest element."
)


def _spoken(records: Sequence[Record]) -> str:
    worst = max(records, key=lambda record: number(record["ratio"]) or 0.0)
    text = f"Single tokens stand out most in {worst['tensor']}: {spelled('ratio', worst['ratio'])} times the median"
    first = next(iter(worst["top_tokens"]), None)
    if first is None:
        return f"{text}."
    known = "" if first.get("id") is None else f" (id {first['id']})"
    return f"{text}, the largest at position {first['position']}{known}, channel {first['channel']}."


def _ratios(records: Sequence[Record], alpha: float | None, spared: Any) -> str:
    series = plots.Series(
        "first",
        tuple(
            plots.Point(
                number(record["ratio"]),
                f"{record['tensor']}: ratio {short(record['ratio'])}, tokens {tokens(record['top_tokens'])}",
                record["tensor"] in spared,
            )
            for record in records
        ),
    )
    return plots.by_depth([series], "max / median", "activations in graph order", alpha or LOUD)


def residuals(records: Sequence[Record]) -> str:
    """The ranges along the residual stream, and of what is added to it."""
    if not records:
        return ""
    series = [
        plots.Series(
            kind,
            tuple(
                plots.Point(number(record[key]), f"{record['add']}, {name}: {short(record[key])}", False)
                for record in records
            ),
        )
        for kind, key, name in (("first", "stream_amax", "stream"), ("second", "branch_amax", "branch"))
    ]
    columns = ("Add", "kind", "branch / stream", "branch", "99.99 %", "stream", "99.99 %", "sum", "99.99 %")
    ranges = [f"{of}_{what}" for of in ("branch", "stream", "sum") for what in ("amax", "p99_99")]
    cells = (
        (code(record["add"]), escape(str(record["kind"])), *(spelled(of, record[of]) for of in ("ratio", *ranges)))
        for record in records
    )
    worst = max(records, key=lambda record: number(record["ratio"]) or 0.0)
    note = (
        "Largest |x| of the stream and of what each branch adds to it. Where they lie far apart, one scale cannot hold "
        f"the sum: most at {worst['add']} ({worst['kind']}), {spelled('ratio', worst['ratio'])} times."
    )
    legend = '<p class="legend"><i class="first"></i>stream <i class="second"></i>branch</p>'
    body = legend + plots.by_depth(series, "largest |x|", "residual Adds in graph order", None)
    body += fold(f"{len(records)} residual Adds", len(records), table(columns, cells, figures=range(2, 9)))
    return section("Residual stream", note, body)


def smooth_quant(found: Record | None) -> str:
    """The alpha of each group of layers that share an activation."""
    groups = (found or {}).get("groups") or ()
    if not found or not groups:
        return ""
    counted = ((name, found.get(name)) for name in ("folded", "inserted", "skipped"))
    note = ", ".join(f"{int(value)} {name}" for name, value in counted if value is not None)
    points = [
        plots.Point(
            number(group["alpha"]),
            f"{group['tensor']}: {'alpha ' + short(group['alpha']) if group['alpha'] is not None else 'not smoothed'}, "
            f"{group['why']}",
            group.get("how") == "inserted",
        )
        for group in groups
    ]
    columns = ("activation", "alpha", "how", "gain", "why", "readers")
    cells = (
        (
            code(group["tensor"]),
            "off" if group["alpha"] is None else short(group["alpha"]),
            escape(str(group["how"])),
            decibel(group.get("gain_db")),
            escape(str(group["why"])),
            _readers(group),
        )
        for group in groups
    )
    body = plots.alphas(points) + fold(
        f"{len(groups)} groups", len(groups), table(columns, cells, figures=(1, 3), find=True)
    )
    text = f"A group is the layers that read one activation: {note or f'{len(groups)} groups'}."
    return section("SmoothQuant", f"{text} Rings are groups that were left as they are.", body)


def qfem(found: Record | None) -> str:
    """The walk over the thresholds and the layers that stay in high precision."""
    if not found:
        return ""
    curve, chosen = found.get("curve") or (), found.get("chosen") or ()
    if not curve and not chosen:
        return ""
    alpha, count = number(found.get("alpha")), len(chosen)
    note = "No layer stays in high precision for its tokens"
    if chosen:
        note = f"Readers of {count} activation{'s' * (count != 1)} stay in high precision"
        note += "" if alpha is None else f": their ratios are above {short(alpha)}"
    note += f" ({found['rule']})." if found.get("rule") else "."
    cells = ((code(one["tensor"]), spelled("ratio", one["ratio"]), _readers(one)) for one in chosen)
    listed = fold(
        f"{count} kept high", count, table(("activation", "max / median token", "readers"), cells, figures=(1,))
    )
    known = [step for step in curve if number(step.get("sqnr_db")) is not None]
    plot = plots.trade(known, _marked(known, chosen)) if len(known) > 1 else ""
    scored = [step for step in known if number(step.get("score")) is not None]
    if len(scored) > 1:
        plot += plots.trade(scored, _marked(scored, chosen), str(found.get("metric") or "metric"))
    return section("QFeM", note, plot + (listed if chosen else ""))


def llm_int8(found: Record | None) -> str:
    """Which channels are multiplied apart, and what that costs."""
    if not found:
        return ""
    columns = (
        "activation",
        "apart",
        "of",
        "layout",
        "largest",
        "largest left",
        "as they are",
        "apart",
        "why",
        "readers",
    )
    cells = (
        (
            code(group["tensor"]),
            str(len(group["channels"])),
            str(group["of"]),
            escape(str(group["layout"])),
            short(group["amax"]),
            short(group["rest"]),
            decibel(group["plain_db"]),
            decibel(group["db"]),
            escape(str(group["why"])),
            _readers(group),
        )
        for group in found["groups"]
    )
    count = len(found["groups"])
    body = fold(f"{count} groups", count, table(columns, cells, figures=(1, 2, 4, 5, 6, 7), find=True))
    return section(
        "LLM.int8()", f"{split_off(found)}. dB are those of the layers' own outputs, on recorded rows.", body
    )


def _marked(curve: Sequence[Record], chosen: Sequence[Record]) -> int:
    """Which step of the curve was taken: the one that keeps as many activations high."""
    return next((i for i, step in enumerate(curve) if step.get("layers") == len(chosen)), -1)


def formats(records: Sequence[Record]) -> str:
    """The precision of every layer by depth, as a strip; neighbours that agree are one piece."""
    layers = [record for record in records if record["macs"]]
    if len({record["precision"] for record in layers}) < 2:
        return ""
    pieces, counts = [], dict.fromkeys((str(record["precision"]) for record in layers), 0)
    for precision, members in itertools.groupby(layers, key=lambda record: str(record["precision"])):
        group = list(members)
        counts[precision] += len(group)
        name = group[0]["node"] if len(group) == 1 else f"{len(group)} layers from {group[0]['node']}"
        title = f"{name} to {group[-1]['node']}" if len(group) > 1 else f"{name}: {group[0]['why']}"
        pieces.append(
            f'<i class="{escape(precision)}" style="flex:{len(group)}" title="{escape(f"{precision}, {title}")}"></i>'
        )
    total = sum(record["macs"] for record in layers)
    shares = {name: sum(record["macs"] for record in layers if record["precision"] == name) / total for name in counts}
    legend = " ".join(
        f'<i class="{escape(name)}"></i>{escape(name)} {counts[name]} ({percent(shares[name])} of MACs)'
        for name in counts
    )
    body = f'<p class="legend">{legend}</p><div class="bar strip">{"".join(pieces)}</div>'
    return section("Formats by layer", f"{len(layers)} layers that multiply, in graph order.", body)


def _readers(record: Record) -> str:
    names = [str(name) for name in record.get("readers") or ()]
    return "<br/>".join(code(name) for name in names[:3]) + ("" if len(names) <= 3 else f"<br/>… {len(names) - 3} more")
