"""Recipes: what is allowed, what a mistake says, and that every text form reads back equal."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import EngineError, UsageError
from qcompiler.recipe.checks import format_shapes, parse_shapes
from qcompiler.recipe.recipe import PRECISIONS, PRESETS, Recipe, preset
from qcompiler.recipe.tables import SafetyTable

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
names = texts.filter(lambda text: ";" not in text and text == text.strip())


@st.composite
def profiles(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    dims = draw(st.lists(st.lists(st.integers(0, 4096), min_size=3, max_size=3).map(sorted), max_size=5))
    least, usual, most = (tuple(three[k] for three in dims) for k in range(3))
    return least, usual, most


recipes = st.builds(
    Recipe,
    precision=st.sampled_from(PRECISIONS),
    calibrator=st.sampled_from(["entropy", "minmax", "percentile{p=99.9}", "mse"]),
    target=st.sampled_from(["tensorrt-rtx", "tensorrt-rtx:sm89,sm120", "tensorrt", "onnxruntime"]),
    high_precision=st.sampled_from([None, "fp32", "fp16", "bf16"]),
    samples=st.none() | st.integers(1, 10**9),
    batch=st.none() | st.integers(1, 1024),
    workers=st.integers(1, 64),
    keep=st.lists(texts.map(re.escape)).map(tuple),
    shapes=st.none() | st.dictionaries(texts, profiles(), min_size=1),
    min_sqnr=st.none() | st.floats(-100, 200),
    max_drop=st.none() | st.floats(0, 1),
    metric=st.sampled_from(["evaluate.py:accuracy", "a.b:c"]),
    strict=st.booleans(),
    verify_samples=st.integers(0, 1000),
    verify_data=st.none() | texts,
    weight_granularity=st.sampled_from(["channel", "tensor"]),
    safety=st.builds(SafetyTable, st.floats(-100, 200), st.floats(0, 1), st.integers(1, 99)),
)


@given(recipes)
def test_toml_reads_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@given(recipes)
def test_plain_data_reads_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@given(st.dictionaries(names, profiles(), min_size=1))
def test_shapes_read_back_equal(shapes: dict[str, Any]) -> None:
    assert parse_shapes(format_shapes(shapes)) == shapes


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


def test_an_unknown_key_names_the_file_and_the_closest_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('precison = "int8"\n')
    with pytest.raises(UsageError, match=r"mine\.toml: unknown key 'precison': did you mean 'precision'\?"):
        Recipe.from_toml(file)


def test_an_unknown_key_of_a_table_names_the_table() -> None:
    with pytest.raises(UsageError, match=r"table \[safety\]: unknown key 'share': did you mean 'min_share'\?"):
        Recipe.from_toml("[safety]\nshare = 0.5\n")


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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe .*none\.toml cannot be read: No such file"):
        Recipe.from_toml(tmp_path / "none.toml")


def test_values_are_checked_in_python_too() -> None:
    with pytest.raises(UsageError, match="'batch' = 0"):
        Recipe(batch=0)
    with pytest.raises(UsageError, match=r"unknown recipe key 'sample': did you mean 'samples'\?"):
        Recipe().replace(sample=3)
    with pytest.raises(UsageError, match="'samples' = -1"):
        Recipe().replace(samples=-1)


def test_an_sm_that_the_engine_lacks_is_the_engines_error() -> None:
    with pytest.raises(EngineError, match="TensorRT-RTX has no sm90"):
        Recipe(target="tensorrt-rtx:sm90")


def test_one_regular_expression_need_not_be_a_list() -> None:
    assert Recipe.from_toml('keep = "^/head"').keep == ("^/head",)


def test_one_shape_fixes_the_input() -> None:
    assert parse_shapes("a:0=1x2;n=()") == {"a:0": ((1, 2),) * 3, "n": ((), (), ())}


@pytest.mark.parametrize("text", ["", "x", "x=1x-2", "x=1,2", "x=1x2,3,4", "x=2,1,3", "=1", "x=1;x=2", "x=1xtwo"])
def test_shapes_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read: allowed is"):
        parse_shapes(text)


def test_equal_recipes_have_equal_hashes() -> None:
    shapes = {"x": ((1,), (2,), (3,))}
    assert hash(Recipe(shapes=shapes)) == hash(Recipe(shapes=dict(shapes)))
    assert len({Recipe(), Recipe(), Recipe(samples=3)}) == 2


def test_resolve_gives_the_target_its_high_precision() -> None:
    assert Recipe().resolve().high_precision == "fp16"
    assert Recipe(target="onnxruntime", high_precision="bf16").resolve().high_precision == "bf16"
    assert Recipe(precision="bf16").resolve().high_precision == "bf16"


def test_every_precision_has_a_preset_of_its_name() -> None:
    assert {preset(name).precision for name in PRESETS} == {*PRECISIONS, "auto"}
    with pytest.raises(UsageError, match=r"no preset 'int7': did you mean 'int8'\?"):
        preset("int7")
