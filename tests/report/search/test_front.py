"""The Pareto front: inside its frame, the chosen point marked, measured and predicted told apart."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qcompiler.report import html, svg
from qcompiler.report.search.front import front, plot
from tests.kit.report.pages import EVIL, Document, example


def points(*times: float | None) -> list[dict[str, Any]]:
    return [
        {
            "id": k,
            "share": 1.0 - 0.1 * k,
            "sqnr_db": ("inf", 31.5, 20.0, "-inf")[k % 4],
            "predicted_s": time,
            "bytes": 1_000_000 + k,
            "high": [EVIL] * k,
            "formats": {},
            "measured": k != 2,
            "chosen": k == 1,
        }
        for k, time in enumerate(times)
    ]


@pytest.mark.parametrize("times", [(1e-4, 2e-4, 3e-4, 4e-4), (None, 2e-4, 1e-4), (5e-5, 5e-5)])
def test_points_stay_inside_the_frame_and_say_what_they_are(times: tuple[float | None, ...]) -> None:
    text = plot(points(*times))
    places = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)" r="[\d.]+" class="(\w+)"', text)
    assert len(places) == len(times)
    assert all(0 <= float(x) <= svg.WIDTH and 0 <= float(y) <= svg.HEIGHT for x, y, _ in places)
    kinds = Counter(kind for _, _, kind in places)
    assert kinds["chosen"] == 1
    assert kinds["exact"] == (len(times) > 2)  # the ring of what was only predicted
    assert ("by the table of costs" in text) is (None not in times)
    assert ("share of multiply-accumulates" in text) is (None in times)


def test_every_point_is_a_row() -> None:
    page = front(points(1e-4, 2.5e-4, None))
    assert Document(page).open == []
    assert EVIL not in page
    text = " ".join(Document(page).texts)
    for piece in ("250 µs", "31.5 dB", "90.0 %", "measured, chosen", "predicted", "1 MB", "3 points"):
        assert piece in text, piece


def test_one_plan_is_no_front(tmp_path: Path) -> None:
    assert front(()) == front(points(1e-4)) == ""
    record = example(tmp_path)
    assert "What else could be had" not in html.render(record)
    assert "<h2>What else could be had</h2>" in html.render({**record, "front": points(1e-4, 2e-4)})
