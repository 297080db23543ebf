"""The section about plans that were tried."""

from __future__ import annotations

from typing import Any

from qcompiler.report.tries import tries
from tests.kit.report.pages import EVIL, Document

HELD: dict[str, Any] = {"goal_db": 25.0, "share": 0.9, "stored": 0, "sqnr_db": 31.25, "drop": 0.0125, "missed": ""}


def test_a_first_try_that_was_good_needs_no_section() -> None:
    assert tries(()) == ""
    assert tries((HELD,)) == ""


def test_every_try_is_a_row_with_goal_and_outcome() -> None:
    page = tries(({**HELD, "goal_db": None, "sqnr_db": "inf", "drop": None, "missed": EVIL}, HELD))
    assert Document(page).open == []
    assert EVIL not in page
    text = " ".join(Document(page).texts)
    for figure in ("2 plans", "25.0 dB", "31.2 dB", "1.25 %", "90.0 %", "exact", "the last one is what was written"):
        assert figure in text


def test_where_none_holds_that_is_said() -> None:
    assert "none holds what was asked for" in tries(({**HELD, "missed": "too bad"},))
