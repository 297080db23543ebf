"""Progress: a line for each stage that is done, and names are text, whatever is in them."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from qcompiler.support.outlook import Outlook
from qcompiler.support.progress import Lines, Progress, Terminal, silent

ODD = "fold [bold]Änderung[/] 図"


def _told(progress: Progress) -> None:
    with progress.stage(ODD, 3) as stage:
        stage.advance()
        stage.total(None)
        stage.total(7)
        stage.note("node [red]x[/]")
        stage.advance(0.5)
    progress.warn("sample [3] is [bold]odd[/]")


def test_lines_say_each_stage_once_it_is_done() -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    with progress.stage("observe") as stage:
        stage.advance(10)
        assert stream.getvalue() == ""
    assert re.fullmatch(r"observe: \d+\.\d s\n", stream.getvalue())
    _told(progress)
    assert re.fullmatch(
        r"observe: .*\nfold \[bold\]Änderung\[/\] 図: \d+\.\d s\nwarning: sample \[3\] is \[bold\]odd\[/\]\n",
        stream.getvalue(),
    )


def test_stages_inside_a_stage_are_said_first() -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    with progress.stage("outer"), progress.stage("inner"):
        pass
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == ["inner", "outer"]


@pytest.mark.parametrize("kind", ["lines", "terminal"])
def test_a_stage_that_fails_is_not_said_to_be_done(kind: str) -> None:
    stream = io.StringIO()
    progress: Progress = Lines(stream) if kind == "lines" else Terminal(Console(file=stream, width=80))
    with pytest.raises(ValueError, match="no"), progress.stage("observe"):
        raise ValueError("no")
    assert "observe" not in stream.getvalue()


def test_a_terminal_gets_ticks_and_markup_is_not_obeyed() -> None:
    stream = io.StringIO()
    _told(Terminal(Console(file=stream, width=80)))
    text = stream.getvalue()
    assert re.search(r"✓ fold \[bold\]Änderung\[/\] 図 \d+\.\d s\n", text)
    assert text.endswith("! sample [3] is [bold]odd[/]\n")


def test_a_bar_shows_what_is_done_now() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    with Terminal(console).stage("observe", 2) as stage:
        stage.note("sample [1]")
    assert "sample [1]" in stream.getvalue()


def test_silent_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    _told(silent)
    assert capfd.readouterr() == ("", "")


def test_what_all_of_it_takes_is_a_line_in_a_log() -> None:
    stream = io.StringIO()
    Lines(stream).expect("about 40 s [1]", Outlook({"observe": 40}))
    assert stream.getvalue() == "estimate: about 40 s [1]\n"
    silent.expect("about 40 s", Outlook({}))


def test_a_bar_tells_what_is_left_of_all_stages() -> None:
    stream = io.StringIO()
    terminal = Terminal(Console(file=stream, width=120, force_terminal=True, color_system=None))
    terminal.expect("about [40] s", Outlook({"observe": 10, "decide": 31}))
    with terminal.stage("observe", 2):
        pass
    assert "estimate: about [40] s" in stream.getvalue()
    assert "in all 40 s left" in stream.getvalue()
