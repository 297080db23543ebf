"""The benchmark's table, page and picture, from figures that were written down by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qcompiler.report.bench import METRICS, RERUN, html, png, terminal
from tests.kit.report.pages import EVIL, Document, words


def figure(median: float, better: float | None = None, **more: Any) -> dict[str, Any]:
    ratio = None if better is None else {"median": better, "low": 0.9 * better, "high": 1.1 * better}
    bounds = {"low": 0.9 * median, "high": 1.2 * median, "p50": median, "p90": 1.5 * median, "p99": 2 * median}
    return {"median": median, **bounds, "spread": 0.3, "better": ratio, **more}


def results(kind: str = "ordinary", **settings: Any) -> dict[str, Any]:
    """Two models on two cases; the second is twice as good."""
    names = ["plain.onnx", EVIL]
    decoder = kind == "decoder"
    models = [
        {
            "name": name,
            "engine": "onnxruntime",
            "version": "1.31",
            "runs_on": "CPUExecutionProvider",
            "bytes": 10_814_023,
            "open_seconds": 0.25,
            "peak_memory_mb": None if k else 120.0,
            "decode": ("cache" if k else "rerun") if decoder else None,
            "cache_bytes_per_token": 512 if k and decoder else None,
        }
        for k, name in enumerate(names)
    ]
    cases: list[dict[str, Any]] = []
    for batch in (1, 4):
        rows = []
        for k, name in enumerate(names):
            row: dict[str, Any] = {"model": name, "same_tokens": 0.985 if k and decoder else None}
            for metric in METRICS[kind]:
                row[metric.key] = figure(0.0125 * batch * (1 if not k else 0.5), 2.0 if k else None)
            rows.append(row)
        cases.append({"batch": batch, "prompt": 16 if decoder else None, "results": rows})
    used = {"rounds": 3, "rounds_asked": 3, "threads": 1, "data": "random tokens", "generate": 8 if decoder else None}
    environment = {"load_average": 0.1, "processors": 2}
    return {"kind": kind, "models": models, "cases": cases, "settings": used | settings, "environment": environment}


@pytest.mark.parametrize("kind", METRICS)
def test_the_page_is_whole_and_has_a_bar_for_each_figure(kind: str) -> None:
    text = html(results(kind))
    document = Document(text)
    assert document.open == []
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert text.count("<svg") == len(METRICS[kind])
    assert text.count("<rect") == len(METRICS[kind]) * 2 * 2
    assert not re.search(r"https?://", text)


def test_bars_stand_inside_their_frame_and_a_longer_one_is_a_larger_figure() -> None:
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', html(results()))
    assert all(float(one) >= 0 for bar in bars for one in bar)
    heights = [float(bar[3]) for bar in bars[:4]]  # of latency: 12.5, 6.25, 50 and 25 ms
    assert heights == pytest.approx([heights[2] / 4, heights[2] / 8, heights[2], heights[2] / 2], abs=0.2)


def test_a_metric_that_nobody_was_measured_for_has_no_section() -> None:
    found = results()
    for case in found["cases"]:
        for row in case["results"]:
            del row["throughput"]
    text = html(found)
    assert "<h2>Latency</h2>" in text
    assert "<h2>Throughput</h2>" not in text


@pytest.mark.parametrize("kind", METRICS)
def test_the_terminal_has_models_cases_and_ratios(kind: str) -> None:
    text = words(terminal(results(kind)))
    for figure_ in ("plain.onnx", "10.8 MB", "0.25 s", "120 MiB", "12.5 ms", "×2.00", "30 %"):
        assert figure_ in text, figure_
    assert ("98.5 %" in text) == ("8 tokens" in text) == (RERUN in text) == (kind == "decoder")


def test_what_makes_figures_doubtful_is_said() -> None:
    assert "the machine was busy" not in words(terminal(results()))
    busy = results() | {"environment": {"load_average": 7.5, "processors": 2}}
    assert "the machine was busy: load 7.5 on 2 processors" in words(terminal(busy))
    assert "1 round of 9: the time was up" in words(terminal(results(rounds=1, rounds_asked=9)))


def test_the_picture_is_a_png() -> None:
    assert png(results()).startswith(b"\x89PNG")
