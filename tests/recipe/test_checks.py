"""Checks of recipe keys: what is taken, and what a mistake is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.recipe.checks import format_shapes, parse_shapes
from qcompiler.recipe.recipe import Recipe

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
names = texts.filter(lambda text: ";" not in text and text == text.strip())


@st.composite
def profiles(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    dims = draw(st.lists(st.lists(st.integers(0, 4096), min_size=3, max_size=3).map(sorted), max_size=5))
    least, usual, most = (tuple(three[k] for three in dims) for k in range(3))
    return least, usual, most


@given(st.dictionaries(names, profiles(), min_size=1))
def test_shapes_read_back_equal(shapes: dict[str, Any]) -> None:
    assert parse_shapes(format_shapes(shapes)) == shapes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("samples = 0", "'samples' = 0: allowed is an integer of at least 1"),
        ("samples = true", "'samples' = True: allowed is an integer"),
        ('samples = "7"', "'samples' = '7': allowed is an integer"),
        ("workers = 1.0", "'workers' = 1.0: allowed is an integer"),
        ('precision = "int9"', "'precision' = 'int9': allowed is one of int8, fp8, .*did you mean 'int8'"),
        ('calibrator = "Entropy!"', "'calibrator' = 'Entropy!': allowed is a calibrator such as entropy"),
        ('target = "tensorrt-rtx:89"', "'target' = .*allowed is an engine .*'89' is not a compute capability"),
        ('high_precision = "fp64"', "'high_precision' = 'fp64': allowed is one of fp32, fp16, bf16"),
        ('keep = ["("]', "'keep' = .*regular expressions, but '\\(' is none"),
        ("keep = [1]", "'keep' = \\[1\\]: allowed is a list of regular expressions"),
        ("min_sqnr = nan", "'min_sqnr' = nan: allowed is a number from -100 to 200"),
        (
            'metric = "accuracy"',
            "'metric' = 'accuracy': allowed is one of perplexity, .* or a function written as file.py:function",
        ),
        ("max_drop = 0.01", "'max_drop' needs 'metric'"),
        ('strict = "yes"', "'strict' = 'yes': allowed is true or false"),
        ("safety = 3", "'safety' = 3: allowed is a table"),
        ("[safety]\nmin_share = 75", "table \\[safety\\]: .*'min_share' = 75: allowed is a number from 0 to 1"),
        ("[shapes]\nx = [[1], [2]]", "three shapes for input 'x'"),
        ('[shapes]\nx = ["2", "1", "3"]', "do not shrink .* input 'x'"),
        ("[shapes]\nx = [[1], [1, 2], [3]]", "of one rank for input 'x'"),
        ("[shapes]\nx = [[-1], [1], [3]]", "not negative for input 'x'"),
        ("samples = ", "is not TOML"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe.from_toml(text)


def test_one_regular_expression_need_not_be_a_list() -> None:
    assert Recipe.from_toml('keep = "^/head"').keep == ("^/head",)


def test_one_shape_fixes_the_input() -> None:
    assert parse_shapes("a:0=1x2;n=()") == {"a:0": ((1, 2),) * 3, "n": ((), (), ())}


@pytest.mark.parametrize("text", ["", "x", "x=1x-2", "x=1,2", "x=1x2,3,4", "x=2,1,3", "=1", "x=1;x=2", "x=1xtwo"])
def test_shapes_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read: allowed is"):
        parse_shapes(text)
