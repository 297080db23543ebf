"""Style sheet and script: everything that pages and plots name is there, and nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from qcompiler.report import style
from qcompiler.report.bench import COLOURS
from qcompiler.report.style import SCRIPT, STYLE

FOLDER = Path(style.__file__).parent
PLOTTED = ("grid", "axis", "mid", "end", "line", "dot", "first", "second", "exact", "bad", "chosen", "limit")


def test_every_colour_that_is_used_is_defined_for_day_and_night() -> None:
    day, night = re.findall(r":root\{([^}]*)\}", STYLE)
    used = set(re.findall(r"var\((--\w+)\)", STYLE)) | {*COLOURS, "--ink"}
    for where in (day, night):
        assert used <= set(re.findall(r"--\w+", where))


def test_kinds_of_dots_and_lines_have_a_style() -> None:
    styled = set(re.findall(r"\.(\w+)", STYLE))
    assert set(PLOTTED) <= styled
    for precision in ("int8", "fp8", "int4", "fp16", "bf16", "fp32"):
        assert f".bar i.{precision}" in STYLE
        assert f"em.{precision}" in STYLE


def test_classes_that_the_pages_name_are_styled_or_known_to_the_browser() -> None:
    named = {
        one
        for path in FOLDER.glob("*.py")
        for classes in re.findall(r'class="([a-z0-9 ]+)"', path.read_text(encoding="utf8"))
        for one in classes.split()
    }
    assert named - set(re.findall(r"\.([a-z][a-z0-9]*)", STYLE)) == set()


def test_nothing_ends_the_elements_they_stand_in_or_asks_for_anything() -> None:
    for text in (STYLE, SCRIPT):
        assert "</" not in text
        assert not re.search(r"@import|url\(|https?:|//", text)


def test_braces_close() -> None:
    for text in (STYLE, SCRIPT):
        assert text.count("{") == text.count("}")
        assert text.count("(") == text.count(")")
