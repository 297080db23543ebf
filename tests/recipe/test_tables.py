"""The tables of a recipe: their keys, and keys that need each other."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import TABLES, Recipe
from qcompiler.recipe.tables import GenerationTable, LlmInt8Table, QfepTable, SmoothQuantTable


def test_an_unknown_key_of_a_table_names_the_table() -> None:
    with pytest.raises(UsageError, match=r"table \[safety\]: unknown key 'share': did you mean 'min_share'\?"):
        Recipe.from_toml("[safety]\nshare = 0.5\n")


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_says_what_it_is_and_every_key_has_help(name: str) -> None:
    kind = TABLES[name]
    assert kind.__name__ == "".join(part.capitalize() for part in name.split("_")) + "Table"
    assert len((kind.__doc__ or "").splitlines()) == 1
    for key in dataclasses.fields(kind):
        assert key.metadata["help"], key.name
        assert (key.default is None) is bool(key.metadata["example"]), key.name


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_default_passes_its_own_check(name: str) -> None:
    table = TABLES[name]()
    for key in dataclasses.fields(table):
        if key.default is not None:
            assert key.metadata["check"](key.default) == key.default, key.name


@pytest.mark.parametrize(
    ("table", "key"),
    [(name, key.name) for name, kind in TABLES.items() for key in dataclasses.fields(kind) if key.default is None],
)
def test_the_example_of_a_key_that_is_unset_can_be_used(table: str, key: str) -> None:
    example = next(one.metadata["example"] for one in dataclasses.fields(TABLES[table]) if one.name == key)
    value = tomllib.loads(f"{key} = {example}")[key]
    found = getattr(TABLES[table](**{key: value}), key)
    assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_wrong_value_names_its_key(name: str) -> None:
    for key in dataclasses.fields(TABLES[name]):
        with pytest.raises(UsageError, match=f"^recipe key '{key.name}' = .*: allowed is "):
            TABLES[name](**{key.name: object()})


@pytest.mark.parametrize(("prompt", "longest", "room"), [(1, 2, True), (8, 8, False), (9, 8, False), (None, 8, True)])
def test_a_prompt_leaves_room_for_an_answer(prompt: int | None, longest: int, room: bool) -> None:
    if room:
        assert GenerationTable(prompt=prompt, max_length=longest).prompt == prompt
        return
    with pytest.raises(UsageError, match=f"a prompt of {prompt} tokens leaves no room .* max_length = {longest}"):
        GenerationTable(prompt=prompt, max_length=longest)


def test_a_table_is_a_value_and_numbers_become_floats() -> None:
    one = SmoothQuantTable(alpha=1)
    assert one == SmoothQuantTable(alpha=1.0)
    assert isinstance(one.alpha, float)
    assert QfepTable(prefix="1, 28") == QfepTable(prefix=[1, 28])  # type: ignore[arg-type]
    assert LlmInt8Table(layers="^/down") == LlmInt8Table(layers=("^/down",))  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.alpha = 0.5  # type: ignore[misc]
