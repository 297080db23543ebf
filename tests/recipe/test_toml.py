"""Recipes as TOML read back equal, with a comment on every key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable


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
