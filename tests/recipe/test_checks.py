"""Checks of recipe keys: what is taken, and what a mistake is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.recipe import checks
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


NOTHING: list[Any] = [None, {}, object()]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.one_of("a", "b"), {"a": "a"}, ["c", 1]),
        (checks.one_number(32, 64), {32: 32}, [33, True, 1.5, "32"]),
        (checks.integer(2), {2: 2, 10**12: 10**12}, [1, True, 2.0, math.nan]),
        (checks.number(0, 1), {0: 0.0, 1: 1.0, 0.5: 0.5}, [-0.1, 1.1, True, math.nan, math.inf]),
        (checks.number(0), {1e300: 1e300}, [math.inf, -1]),
        (checks.flag, {True: True, False: False}, [0, 1, "true"]),
        (checks.text, {" ü ": " ü "}, [" ", "\n", 3]),
        (checks.function, {"a.py:f": "a.py:f", "p.m:f": "p.m:f"}, ["f", ":f", "a.py:", "a.py"]),
        (checks.metric(["perplexity"]), {"perplexity": "perplexity", "a.py:f": "a.py:f"}, ["perplexit", 1]),
        (checks.texts, {"a": ("a",), ("a", "b"): ("a", "b")}, [["a", " "], [1], 1]),
        (checks.regexes, {"^a$": ("^a$",), ("a", "b|c"): ("a", "b|c")}, ["(", ["a", "*"], [1], 1]),
        (checks.alpha(0, 1, "auto", "off"), {"auto": "auto", 1: 1.0}, ["on", 2, True, math.nan]),
        (
            checks.prefix,
            {"off": "off", "text:a": "text:a", "1, 28": (1, 28), (3,): (3,)},
            ["text:", "one", "1,,2", "-1", (-1,), (True,), (1.5,)],
        ),
        (checks.calibrator, {"entropy": "entropy", "mse{format=fp8}": "mse{format=fp8}"}, ["Mse", "mse{", "a b", 1]),
        (checks.target, {"tensorrt-rtx:sm89": "tensorrt-rtx:sm89"}, ["tensorrt-rtx:89", "tvm", " ", 1]),
    ],
    ids=lambda one: one.__qualname__.split(".")[0] if callable(one) else "",
)
def test_a_check_returns_its_value_or_says_what_is_allowed(
    check: checks.Check, good: dict[Any, Any], bad: list[Any]
) -> None:
    for value, expected in good.items():
        assert check(value) == expected
        assert type(check(value)) is type(expected)
        assert check(check(value)) == expected
    for value in [*bad, *NOTHING]:
        with pytest.raises(checks.WrongError, match=r".{9}"):
            check(value)


def test_a_close_word_is_suggested_and_a_far_one_is_not() -> None:
    check = checks.one_of("dequantize", "matmulnbits")
    with pytest.raises(checks.WrongError, match=r"^one of dequantize, matmulnbits; did you mean 'dequantize'\?$"):
        check("dequantise")
    with pytest.raises(checks.WrongError, match="^one of dequantize, matmulnbits$"):
        check("zzz")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("int8", "int8"),
        ("auto", "auto"),
        ("auto:fp8", "auto:fp8"),
        ("auto:fp16, fp8,int8", "auto:int8,fp8,fp16"),
        ("auto:fp8,fp8", "a format is there twice"),
        ("auto:int8,int9", "'int9' is not in it"),
        ("auto:", "'' is not in it"),
        ("fp9", "one of int8, fp8, auto"),
    ],
)
def test_the_formats_of_auto_have_one_order(value: str, expected: str) -> None:
    check = checks.precision(("int8", "fp8"), ("int8", "fp8", "fp16"))
    if expected == value or expected.startswith("auto:int8,fp8"):
        assert check(value) == expected
        return
    with pytest.raises(checks.WrongError, match=expected):
        check(value)


def test_layers_have_an_alpha_each() -> None:
    assert checks.by_layer({"down_proj": 1, "^a": 0.25}) == {"down_proj": 1.0, "^a": 0.25}
    for wrong in ({"(": 0.5}, {"a": 2}, {"a": "x"}, {1: 0.5}, [("a", 1)]):
        with pytest.raises(checks.WrongError):
            checks.by_layer(wrong)


@pytest.mark.parametrize(("shape", "text"), [((), "()"), ((0,), "0"), ((1, 3, 224, 224), "1x3x224x224")])
def test_a_shape_is_spelled_as_it_is_read(shape: tuple[int, ...], text: str) -> None:
    assert checks.spell_shape(shape) == text
    assert parse_shapes(f"x={text}") == {"x": (shape,) * 3}


def test_an_input_may_be_named_with_the_signs_of_the_notation() -> None:
    assert parse_shapes("a=b,c=1,2,3; d = 4 ") == {"a=b,c": ((1,), (2,), (3,)), "d": ((4,),) * 3}


def test_batch_axes_are_a_table_or_texts() -> None:
    wanted = {"x": 1, "a=b": None}
    assert checks.batch_axes({"x": 1, "a=b": None}) == wanted
    assert checks.batch_axes({"x": "1", "a=b": "none"}) == wanted
    assert checks.batch_axes(["x=1", "a=b=none"]) == wanted
    assert checks.batch_axes("x=0") == {"x": 0}
    assert checks.parse_batch_axes(["x=1", "a=b=none"]) == wanted


@pytest.mark.parametrize("wrong", [["x"], ["x=-1"], ["x=one"], ["x=1", "x=2"], "=1", {"x": True}, {"x": 1.5}, 3])
def test_batch_axes_that_cannot_be_read_are_refused(wrong: Any) -> None:
    with pytest.raises(checks.WrongError):
        checks.batch_axes(wrong)
    with pytest.raises(UsageError, match="recipe key 'batch_axis'"):
        Recipe(batch_axis=wrong)


@pytest.mark.parametrize(("value", "size"), [(8, (8, 8)), ("8", (8, 8)), ("6x8", (6, 8)), ([6, 8], (6, 8))])
def test_a_size_of_pictures_is_one_number_or_two(value: Any, size: tuple[int, int]) -> None:
    assert checks.picture_size(value) == size


@pytest.mark.parametrize("value", [0, "x", "8x", [1, 2, 3], [], True, 2.5, "-1"])
def test_other_sizes_of_pictures_are_refused(value: Any) -> None:
    with pytest.raises(checks.WrongError, match="height x width in pixels"):
        checks.picture_size(value)


def test_numbers_may_stand_alone() -> None:
    assert checks.numbers(0.5) == (0.5,)
    assert checks.numbers([1, 2.5]) == (1.0, 2.5)
    for wrong in ("1", [1, "2"], [math.nan], None):
        with pytest.raises(checks.WrongError, match="a list of numbers"):
            checks.numbers(wrong)


def test_a_preparation_is_a_name_a_configuration_or_a_function() -> None:
    check = checks.preprocessing(("imagenet", "yolo"))
    for right in ("imagenet", "m/preprocessor_config.json", "pre.py:load", "package.module:load"):
        assert check(right) == right
    with pytest.raises(checks.WrongError, match="did you mean 'imagenet'"):
        check("imagnet")
    with pytest.raises(checks.WrongError, match=r"one of imagenet, yolo, a preprocessor_config\.json, or a function"):
        check(3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("3", 3),
        ("-1.5e3", -1500.0),
        ("[1, 2]", [1, 2]),
        ("[[true], [false]]", [[True], [False]]),
        ("a/b.npy", "a/b.npy"),
    ],
)
def test_values_of_inputs_are_a_table_or_texts(text: str, value: Any) -> None:
    assert checks.fixed_inputs({"a=b": value}) == {"a=b": value}
    assert checks.fixed_inputs([f"a=b={text}", "c=1"]) == {"a=b": value, "c": 1}
    assert checks.parse_fixed_inputs([f"x={text}"]) == {"x": value}


def test_values_of_inputs_may_be_arrays_in_python() -> None:
    assert checks.fixed_inputs({"x": np.array([True]), "n": np.int64(3), "t": (1, (2,))[:1]}) == {
        "x": [True], "n": 3, "t": [1]
    }  # fmt: skip
    assert Recipe(fix_input={"x": np.array([[1, 2]])}).to_dict()["fix_input"] == {"x": [[1, 2]]}


@pytest.mark.parametrize(
    "wrong", [["x"], ["x=yes"], ["x=1", "x=2"], "=1", {"x": "text"}, {"x": [[1], 2]}, {"x": None}, 3]
)
def test_values_of_inputs_that_cannot_be_read_are_refused(wrong: Any) -> None:
    with pytest.raises(checks.WrongError):
        checks.fixed_inputs(wrong)
    with pytest.raises(UsageError, match="recipe key 'fix_input'"):
        Recipe(fix_input=wrong)


def test_fixed_shapes_are_a_table_or_texts() -> None:
    wanted = {"x": "1x3x8", "batch": "1", "scalar": "()"}
    assert checks.fixed_shapes({"x": [1, 3, 8], "batch": 1, "scalar": []}) == wanted
    assert checks.fixed_shapes(["x=1x3x8", "batch=1", "scalar=()"]) == wanted
    assert checks.parse_fixed_shapes(["x=1,3,8"]) == {"x": "1x3x8"}
    assert checks.read_fixed_shape("x", "1x3x8") == (1, 3, 8)


@pytest.mark.parametrize("wrong", [["x"], ["x=-1"], ["x=1xa"], ["x=1", "x=2"], {"x": True}, {"x": 1.5}, 3])
def test_fixed_shapes_that_cannot_be_read_are_refused(wrong: Any) -> None:
    with pytest.raises(checks.WrongError):
        checks.fixed_shapes(wrong)
    with pytest.raises(UsageError, match="recipe key 'fix_shape'"):
        Recipe(fix_shape=wrong)


@pytest.mark.parametrize("wrong", [0, [0.2, 0], [-1.0], [], "x"])
def test_what_is_divided_by_is_above_zero(wrong: Any) -> None:
    with pytest.raises(checks.WrongError, match="numbers"):
        checks.numbers_above_zero(wrong)
