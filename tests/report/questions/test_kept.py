"""What compilations keep, as people read it."""

from __future__ import annotations

import io

from rich.console import Console

from qcompiler.report.questions import kept


def told(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    for part in parts:
        console.print(part)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_folder_size_and_a_row_for_each_stage() -> None:
    row = {"name": "observe", "results": 3, "bytes": 1500, "used": "2026-11-30T12:00:00+00:00"}
    text = told(*kept.terminal({"folder": "/there", "bytes": 1500, "limit": 20 * 10**9, "stages": [row]}))
    assert "/there: 1.5 kB of at most 20 GB" in text
    assert "observe" in text
    assert "2026-11-30 12:00:00 UTC" in text


def test_where_nothing_is_kept_it_says_so() -> None:
    assert "QCOMPILER_CACHE is off" in told(*kept.terminal(None))
    assert "20 GB" in told(*kept.terminal({"folder": "/there", "bytes": 0, "limit": 20 * 10**9, "stages": []}))


def test_what_was_removed() -> None:
    assert told(*kept.cleared(2000)) == "removed 2 kB\n"
    assert told(*kept.cleared(0)) == "nothing was kept\n"
