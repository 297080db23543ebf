"""The tables of a recipe: their keys, and keys that need each other."""

from __future__ import annotations

import pytest

from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe


def test_an_unknown_key_of_a_table_names_the_table() -> None:
    with pytest.raises(UsageError, match=r"table \[safety\]: unknown key 'share': did you mean 'min_share'\?"):
        Recipe.from_toml("[safety]\nshare = 0.5\n")
