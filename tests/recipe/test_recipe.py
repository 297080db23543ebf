"""Recipes: what is allowed, what a mistake says, and that every text form reads back equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import EngineError, UsageError
from qcompiler.recipe.recipe import PRECISIONS, PRESETS, Recipe, preset
from qcompiler.recipe.tables import SafetyTable

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))


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
    batch_axis=st.none() | st.dictionaries(texts, st.none() | st.integers(0, 4)),
    fix_input=st.none() | st.dictionaries(texts, st.booleans() | st.integers(0, 9) | st.lists(st.floats(-9, 9))),
    fix_shape=st.none() | st.dictionaries(texts, st.lists(st.integers(0, 9), min_size=1)),
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
    reproducible=st.booleans(),
    safety=st.builds(SafetyTable, st.floats(-100, 200), st.floats(0, 1), st.integers(1, 99)),
)


@given(recipes)
def test_toml_reads_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@given(recipes)
def test_plain_data_reads_back_equal(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_an_unknown_key_names_the_file_and_the_closest_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('precison = "int8"\n')
    with pytest.raises(UsageError, match=r"mine\.toml: unknown key 'precison': did you mean 'precision'\?"):
        Recipe.from_toml(file)


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


def test_a_key_of_an_earlier_version_is_left_out_of_a_replay_and_told_in_a_recipe() -> None:
    known = Recipe.from_dict({"safety": {"range_groups": 24, "min_share": 0.5}})
    assert known == Recipe(safety=SafetyTable(min_share=0.5))
    with pytest.raises(UsageError, match=r"'range_groups' is gone: .*budget of the search"):
        Recipe.from_toml("[safety]\nrange_groups = 24\n")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"effort": "quick", "search_time": "2m"}, "'effort' and 'search_time' both say how long"),
        ({"precision": "fp16", "pick": "knee"}, "'pick' = 'knee' is of the search .* precision 'fp16' has none"),
        ({"precision": "int8-weight", "objective": "size"}, "'objective' = 'size' is of the search"),
        ({"precision": "int8-dynamic", "search_time": 3}, "'search_time' = 3.0 is of the search"),
        ({"precision": "bf16", "effort": "thorough"}, "'effort' = 'thorough' is of the search"),
        ({"target": "onnxruntime", "objective": "time"}, "'objective' = 'time' needs a TensorRT target"),
        ({"replay": "m.manifest.json"}, "'replay' needs 'pick'"),
        ({"objective": "speed"}, "'objective' = 'speed': allowed is one of share, time, size"),
        ({"pick": "best"}, "'pick' = 'best': allowed is one of fastest, most-accurate, knee, the id of a point"),
        ({"pick": "1.5"}, "'pick' = '1.5': allowed is a share from 0.0 to 1.0; an id is a whole number"),
        ({"search_time": "soon"}, "'search_time' = 'soon': allowed is a time such as 90s"),
        ({"reproducible": "no"}, "'reproducible' = 'no': allowed is true or false"),
        ({"metric": "m.py:f", "max_drop": "much"}, "'max_drop' = 'much': allowed is a number of at least 0, .* 0.5%"),
        ({"metric": "m.py:f", "max_drop": "-1%"}, "'max_drop' = '-1%': allowed is"),
        ({"metric": "m.py:f", "max_drop": "nan"}, "'max_drop' = 'nan': allowed is"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe(**keys)


@pytest.mark.parametrize(
    ("text", "value"), [("knee", "knee"), ("3", 3), (3, 3), ("0.8", 0.8), (0.8, 0.8), ("1.0", 1.0), ("0", 0)]
)
def test_a_pick_is_a_word_an_id_or_a_share(text: Any, value: Any) -> None:
    found = Recipe(pick=text).pick
    assert (found, type(found)) == (value, type(value))
    assert Recipe.from_toml(Recipe(pick=text).to_toml()).pick == value


def test_a_drop_may_be_a_percentage() -> None:
    assert Recipe.from_toml('metric = "m.py:f"\nmax_drop = "0.5%"').max_drop == pytest.approx(0.005)
    assert Recipe.from_toml('metric = "m.py:f"\nmax_drop = "0.01"').max_drop == 0.01


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt-rtx:sm89", "tensorrt:sm86,sm89", "onnxruntime"])
def test_an_engine_for_each_gpu_needs_several(target: str) -> None:
    with pytest.raises(UsageError, match=f"'engine_per_sm' needs a target of several GPUs, and '{target}'"):
        Recipe(target=target, engine_per_sm=True)
    assert Recipe(target="tensorrt-rtx:sm86,sm89", engine_per_sm=True).engine_per_sm
