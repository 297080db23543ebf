"""From a recipe to the options of each stage; what cannot work is refused before anything is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.data.text import Text

if TYPE_CHECKING:
    from qcompiler.recipe.recipe import Recipe


def settled(recipe: Recipe, data: object) -> Recipe:
    """The recipe with the tokenizer and the length of a `Text`, so that a manifest says all that was used."""
    if not isinstance(data, Text):
        return recipe
    table = dataclasses.replace(recipe.text, tokenizer=Path(data.tokenizer).as_posix(), length=data.length)
    return recipe.replace(text=table)
