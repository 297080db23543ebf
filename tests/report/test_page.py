"""The parts of an HTML page: everything closes, and nothing that comes from a model is markup."""

from __future__ import annotations

import pytest

from qcompiler.report.page import OPEN_ROWS, code, fold, page, section, table
from tests.kit.report.pages import EVIL, Document


def test_a_page_is_whole_and_leaves_empty_parts_out() -> None:
    text = page(EVIL, ["<p>one</p>", "", "<p>two</p>"])
    assert Document(text).open == []
    assert "<p>one</p>\n<p>two</p>" in text
    assert EVIL not in text


@pytest.mark.parametrize("text", [section(EVIL, EVIL, ""), fold(EVIL, 1, ""), code(EVIL), table([EVIL], [])])
def test_names_are_text(text: str) -> None:
    document = Document(text)
    assert "script" not in [tag for tag, _ in document.tags]
    assert EVIL in document.texts


def test_a_section_without_a_note_has_no_empty_line() -> None:
    assert "<p" not in section("a", "", "<b>b</b>")
    assert '<p class="dim">note</p>' in section("a", "note", "")


@pytest.mark.parametrize(("rows", "opened"), [(1, True), (OPEN_ROWS, True), (OPEN_ROWS + 1, False)])
def test_many_rows_are_folded(rows: int, opened: bool) -> None:
    (attrs,) = [attrs for tag, attrs in Document(fold("rows", rows, "")).tags if tag == "details"]
    assert ("open" in attrs) is opened


def test_figures_are_set_to_the_right_and_short_words_are_not_broken() -> None:
    text = table(("op", "name", "share"), [("Conv", "<b>n</b>", "5 %")], figures=(2,))
    assert '<td class="w">Conv</td><td><b>n</b></td><td class="n">5 %</td>' in text
    assert '<th class="n">share</th>' in text


def test_a_table_can_be_searched_on_request() -> None:
    rows = [("a",)]
    assert "search" not in table(("x",), rows)
    assert Document(table(("x",), rows, find=True)).tags[0] == ("input", {
        "type": "search", "placeholder": "find …", "aria-label": "find",
    })  # fmt: skip


def test_a_row_that_lacks_a_cell_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("a", "b"), [("one",)])
