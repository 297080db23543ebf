"""Plots as inline SVG text: no library, no request, colours from the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from qcompiler.report.figures import decibel, number, percent

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40
CEILING_DB = 70.0  # everything above is drawn here; an exact tensor is infinite


def drift(layers: Sequence[Mapping[str, Any]], limit_db: float) -> str:
    """SQNR of inner tensors over their place in the graph; names show on hovering.

    Drifting ones stand out; those that agree to the bit are rings at the upper edge.
    """
    if not layers:
        return ""
    values = [_bounded(layer["sqnr_db"]) for layer in layers]
    exact = [number(layer["sqnr_db"]) == math.inf for layer in layers]
    finite = [value for value, infinite in zip(values, exact, strict=True) if not infinite]
    low, high = min(0.0, *finite, 0.0), max(40.0, *finite, 0.0) + 2
    step = (WIDTH - LEFT - RIGHT) / len(values)
    dots = [
        Dot(
            x=LEFT + (i + 0.5) * step,
            y=_y(high if exact[i] else value, low, high),
            title=f"{layer['node']} ({layer['op']}): {decibel(layer['sqnr_db'])}{_alone(layer)}",
            kind="exact" if exact[i] else "bad" if layer["drifts"] else "dot",
        )
        for i, (layer, value) in enumerate(zip(layers, values, strict=True))
    ]
    return figure(_grid(low, high), across(_y(limit_db, low, high)), _joined(dots), below("layers in graph order"))


def _alone(layer: Mapping[str, Any]) -> str:
    return f", by itself {decibel(layer['own_db'])}" if "own_db" in layer else ""


def curve(steps: Sequence[Mapping[str, Any]], target_db: float | None) -> str:
    """The safety net's plans: share of quantized MACs against the SQNR of the outputs; the last one was chosen."""
    if not steps:
        return ""
    values = [_bounded(step["sqnr_db"]) for step in steps]
    shares = [number(step["share"]) or 0.0 for step in steps]
    low, high = min(0.0, *values), max(30.0, (target_db or 0.0) + 5, *values)
    first = max(0.0, math.floor(min(shares) * 10 - 0.5) / 10)
    scale = (WIDTH - LEFT - RIGHT - 30) / max(1 - first, 0.1)
    dots = [
        Dot(
            x=LEFT + (share - first) * scale,
            y=_y(value, low, high),
            title=f"{percent(share)} of MACs quantized: {decibel(step['sqnr_db'])}",
            kind="chosen" if step is steps[-1] else "dot",
        )
        for step, share, value in zip(steps, shares, values, strict=True)
    ]
    ticks = "".join(
        f'<text x="{LEFT + (k / 10 - first) * scale:.1f}" y="{HEIGHT - 24}" class="axis mid">{10 * k} %</text>'
        for k in range(math.ceil(first * 10), 11)
    )
    target = "" if target_db is None else across(_y(target_db, low, high))
    return figure(_grid(low, high), target, _joined(dots), ticks, below("share of MACs that is quantized"))


def decibels(values: Sequence[Any]) -> tuple[Callable[[Any], float], str]:
    """The height of an SQNR in a plot that shows all of these values, and the grid of that plot."""
    known = [_bounded(value) for value in values]
    low, high = min([0.0, *known]), max([30.0, *known]) + 2
    return lambda value: _y(_bounded(value), low, high), _grid(low, high)


class Dot(NamedTuple):
    """A point of a plot with what is shown on hovering; `kind` is a class of the style sheet."""

    x: float
    y: float
    title: str
    kind: str

    def __str__(self) -> str:
        radius = 5.5 if self.kind in ("bad", "chosen") else 3.5
        shape = f'<circle cx="{self.x:.1f}" cy="{self.y:.1f}" r="{radius}" class="{self.kind}">'
        return f"{shape}<title>{escape(self.title)}</title></circle>"


def _joined(dots: Sequence[Dot]) -> str:
    points = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots if dot.kind != "exact")
    return f'<polyline points="{points}" class="line"/>' + "".join(map(str, dots))


def across(y: float) -> str:
    """A limit."""
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="limit"/>'


def below(text: str) -> str:
    """What the level axis shows."""
    return f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" class="axis mid">{text}</text>'


def figure(*parts: str) -> str:
    """A whole plot."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _grid(low: float, high: float) -> str:
    step = 10 if high - low <= 80 else 20
    parts = []
    for value in range(step * math.ceil(low / step), int(high) + 1, step):
        y = _y(value, low, high)
        parts.append(tick(y, str(value).replace("-", "−")))
    return "".join(parts) + label("SQNR in dB")


def tick(y: float, text: str) -> str:
    """A line of the grid with its figure."""
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
    return f'{line}<text x="{LEFT - 8}" y="{y + 4:.1f}" class="axis end">{escape(text)}</text>'


def label(text: str) -> str:
    """What the upright axis shows."""
    turned = f'transform="rotate(-90 14 {HEIGHT / 2})"'
    return f'<text x="14" y="{HEIGHT / 2}" class="axis mid" {turned}>{escape(text)}</text>'


def _y(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _bounded(value: Any) -> float:
    figure = number(value)
    return -10.0 if figure is None else min(max(figure, -20.0), CEILING_DB)
