"""Plots by depth and of trades, as inline SVG like those in `svg`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qcompiler.report.figures import decibel, number, percent, short
from qcompiler.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Dot, across, below, figure, label, tick

_HIGHEST = 1e12  # an infinite figure is drawn here
_LOWEST = 1e-12


class Point(NamedTuple):
    """A figure, what is shown on hovering, and whether it stands out; a figure that is not known is left out."""

    value: float | None
    title: str
    marked: bool


class Series(NamedTuple):
    """Points of one kind, which is a class of the style sheet."""

    kind: str
    points: Sequence[Point]


def by_depth(series: Sequence[Series], name: str, below_text: str, limit: float | None) -> str:
    """Positive figures over their place in the graph, on a logarithmic scale."""
    values = [_positive(point.value) for one in series for point in one.points]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    bounds = [*known, *([] if limit is None else [limit])]
    low, high = math.log10(min(bounds)) - 0.1, math.log10(max(bounds)) + 0.1
    if high - low < 1:
        high = low + 1
    parts = [_decades(low, high), label(name)]
    if limit is not None:
        parts.append(across(_height(math.log10(limit), low, high)))
    for one in series:
        step = (WIDTH - LEFT - RIGHT) / len(one.points)
        dots = [
            Dot(
                LEFT + (i + 0.5) * step,
                _height(math.log10(value), low, high),
                point.title,
                "chosen" if point.marked else one.kind,
            )
            for i, point in enumerate(one.points)
            if (value := _positive(point.value)) is not None
        ]
        parts.append(_line(dots, one.kind))
    return figure(*parts, below(below_text))


def alphas(points: Sequence[Point]) -> str:
    """Figures between 0 and 1 over their place in the graph; those that are not known are rings at the bottom."""
    if not points:
        return ""
    step = (WIDTH - LEFT - RIGHT) / len(points)
    dots = [
        Dot(
            LEFT + (i + 0.5) * step,
            _height(0.0 if point.value is None else min(max(point.value, 0.0), 1.0), -0.05, 1.05),
            point.title,
            "exact" if point.value is None else "chosen" if point.marked else "first",
        )
        for i, point in enumerate(points)
    ]
    grid = "".join(tick(_height(value, -0.05, 1.05), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1))
    return figure(grid, label("alpha"), "".join(map(str, dots)), below("groups in graph order"))


def trade(curve: Sequence[Mapping[str, Any]], chosen: int, metric: str = "") -> str:
    """SQNR of the outputs, or the metric, over the share of multiply-accumulates that stays in high precision.

    Args:
        curve: the steps that were tried.
        chosen: index of the one that was taken; -1 for none.
        metric: what the score of each step is called; empty to draw SQNR.
    """
    if not curve:
        return ""
    if metric:
        values = [number(step["score"]) or 0.0 for step in curve]
        smallest = max(1e-3 * max(map(abs, values)), 1e-9)
    else:
        values, smallest = [min(max(number(step["sqnr_db"]) or 0.0, -20.0), 100.0) for step in curve], 4.0
    shares = [number(step["share"]) or 0.0 for step in curve]
    gap = max(max(values) - min(values), smallest) * 0.15
    low, high = min(values) - gap, max(values) + gap
    most = max(*shares, 0.01) * 1.05
    dots = [
        Dot(
            LEFT + share / most * (WIDTH - LEFT - RIGHT - 12) + 6,
            _height(value, low, high),
            f"alpha {short(step.get('alpha'))}: {step.get('layers')} activations, "
            f"{percent(share, 2)} of MACs high, {f'{metric} {value:.6g}' if metric else decibel(value)}",
            "chosen" if i == chosen else "first",
        )
        for i, (step, share, value) in enumerate(zip(curve, shares, values, strict=True))
    ]
    every = _round_step((high - low) / 5)
    rows = range(math.ceil(low / every), math.floor(high / every) + 1)
    grid = "".join(tick(_height(k * every, low, high), f"{k * every:g}".replace("-", "−")) for k in rows)
    width = _round_step(most / 6)
    marks = "".join(
        f'<text x="{LEFT + k * width / most * (WIDTH - LEFT - RIGHT - 12) + 6:.1f}" y="{HEIGHT - 24}" '
        f'class="axis mid">{100 * k * width:.3g} %</text>'
        for k in range(math.floor(most / width) + 1)
    )
    text = below("share of MACs that stays in high precision")
    return figure(grid, label(metric or "SQNR in dB"), _line(dots, "first"), marks, text)


def _line(dots: Sequence[Dot], kind: str) -> str:
    points = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots)
    return f'<polyline points="{points}" class="line {kind}"/>' + "".join(map(str, dots))


def _decades(low: float, high: float) -> str:
    """Lines at powers of ten, and at 2 and 5 times these where there is room."""
    steps = (1, 2, 5) if high - low <= 2.5 else (1,)
    every = max(1, math.ceil((high - low) / 8))
    marks = [
        (math.log10(step) + power, step * 10.0**power)
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
        if power % every == 0
    ]
    return "".join(tick(_height(at, low, high), _spell(value)) for at, value in marks if low <= at <= high)


def _spell(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e−")


def _positive(value: float | None) -> float | None:
    return None if value is None or value <= 0 else min(max(value, _LOWEST), _HIGHEST)


def _round_step(wanted: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted * 0.999)


def _height(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
