"""Recipes as TOML read back equal, with a comment on every key."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from qcompiler.recipe.toml import entry_of, plain, to_toml, toml_text


def test_a_toml_recipe_mentions_every_key_with_a_comment() -> None:
    lines = Recipe().to_toml().splitlines()
    for key in Recipe().to_dict():
        at = next(i for i, line in enumerate(lines) if re.match(rf"(# )?\[?{key}\b", line))
        assert lines[at - 1].startswith("# "), key


def test_unset_keys_of_a_printed_recipe_can_be_used_by_removing_the_comment_sign() -> None:
    text = re.sub(r"^# (?=(\[?[a-z_]+ =|x =|\[))", "", Recipe().to_toml(), flags=re.MULTILINE)
    recipe = Recipe.from_dict(tomllib.loads(text))
    assert (recipe.samples, recipe.max_drop, recipe.metric) == (512, 0.01, "evaluate.py:accuracy")
    assert recipe.shapes == {"x": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))}


def test_a_file_is_read_whether_named_by_path_or_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("samples = 7\n[safety]\nmin_share = 0.5\n")
    assert Recipe.from_toml(file) == Recipe.from_toml(str(file)) == Recipe(samples=7, safety=SafetyTable(min_share=0.5))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe .*none\.toml cannot be read: No such file"):
        Recipe.from_toml(tmp_path / "none.toml")


scalars = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


@given(values)
def test_any_plain_value_reads_back_equal(value: Any) -> None:
    assert tomllib.loads(f"key = {to_toml(value)}") == {"key": value}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1, "1"),
        (0.1, "0.1"),
        ("a\n\"b\"\x7f 'c' ü", '"a\\n\\"b\\"\\u007f \'c\' ü"'),
        ([], "[]"),
        ({}, "{}"),
        ({"down proj": 0.8, "x": [1]}, '{ "down proj" = 0.8, "x" = [1] }'),
    ],
    ids=str,
)
def test_values_are_written_like_this(value: Any, text: str) -> None:
    assert to_toml(value) == text


def test_a_recipe_becomes_lists_and_dicts_alone() -> None:
    table = SmoothQuantTable(layers={"down_proj": 0.8})
    assert plain(table) == {"alpha": "auto", "insert": False, "convolutions": False, "layers": {"down_proj": 0.8}}
    assert plain({"x": ((1,), (2,), (3,))}) == {"x": [[1], [2], [3]]}
    assert plain(("a", "b")) == ["a", "b"]
    assert plain(None) is None


def test_an_unset_key_is_a_comment_with_an_example() -> None:
    key = next(one for one in dataclasses.fields(Recipe) if one.name == "samples")
    assert entry_of(key, None) == [f"# {key.metadata['help']}", f"# samples = {key.metadata['example']}"]
    assert entry_of(key, 3) == [f"# {key.metadata['help']}", "samples = 3"]


@pytest.mark.parametrize("text", ["", " \n", "samples = 1", "[safety]\nsamples = 1"])
def test_text_is_told_from_the_name_of_a_file(text: str) -> None:
    assert toml_text(text) == ("recipe", text)


def test_a_file_whose_name_looks_like_toml_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").write_text("# ü", encoding="utf8")
    assert toml_text("a=b") == ("recipe a=b", "# ü")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"samples = \xff")
    with pytest.raises(UsageError, match=r"recipe .*r\.toml cannot be read: it is not UTF-8 text"):
        toml_text(tmp_path / "r.toml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        toml_text(tmp_path)
