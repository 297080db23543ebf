"""Keys of a manifest that no section knows: a new stage shows in the report, escaped, without an edit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qcompiler.recipe.recipe import Recipe
from qcompiler.report import html, manifest, unknown
from tests.kit import manifests
from tests.kit.report.pages import EVIL, Document


@pytest.fixture
def known() -> dict[str, Any]:
    return manifest.read(manifests.SCHEMA_1)


def test_every_key_that_is_written_has_its_place() -> None:
    plain = {"not_measured"}  # a table of nodes says all there is to say
    assert set(manifests.build(source=None, recipe=Recipe())) - plain == unknown.KNOWN
    (shown,) = [unknown.sections({one: [{"node": "n", "op": "Top", "domain": "mine"}]}) for one in plain]
    assert "Top" in shown


def test_a_manifest_of_known_keys_has_no_such_section(known: dict[str, Any]) -> None:
    assert unknown.sections(known) == ""


def test_a_record_becomes_a_table_of_facts_and_its_lists_of_records_tables_of_their_own(known: dict[str, Any]) -> None:
    stage = {"rounds": 3, "gain_db": 1.25, "layers": [{"node": "a", "db": 30.5}, {"node": "b", "why": "small"}]}
    page = html.render({**known, "rotate": stage})
    assert Document(page).open == []
    (found,) = re.findall(r"<section><h2>rotate</h2>.*?</section>", page, re.DOTALL)
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", found)
    assert cells == [
        *("what", "", "rounds", "3", "gain db", "1.25"),
        *("node", "db", "why", "a", "30.5", "–", "b", "–", "small"),
    ]
    assert "<summary>layers: 2</summary>" in found


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        ([{"a": 1}, {"b": None}], ["a", "b", "1", "–", "–", "–"]),
        (7, ["what", "", "rotate", "7"]),
        (False, ["what", "", "rotate", "False"]),
        (["x", 2.5], ["what", "", "rotate", "x, 2.5"]),
        ({"share": "half", "macs": None}, ["what", "", "share", "half", "macs", "–"]),
    ],
)
def test_any_plain_value_is_shown(value: Any, cells: list[str]) -> None:
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", unknown.sections({"rotate": value})) == cells


@pytest.mark.parametrize("value", [None, [], {}, ""])
def test_what_did_not_take_place_is_left_out(value: Any) -> None:
    assert unknown.sections({"rotate": value}) == ""


@pytest.mark.parametrize("value", [EVIL, [EVIL], {EVIL: EVIL}, [{EVIL: EVIL}], {EVIL: [{EVIL: {EVIL: EVIL}}]}])
def test_everything_in_it_is_escaped(known: dict[str, Any], value: Any) -> None:
    page = html.render({**known, EVIL: value})
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;conv&#x27;") >= 2
    assert Document(page).open == []
