from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from qcompiler.engines import for_target
from qcompiler.engines.base import Diagnostic, Input, Phases, Profile, nodes_in, profile_error
from qcompiler.errors import EngineError, ModelError, UsageError
from qcompiler.target import ENGINES, Target, parse_target


def test_a_profile_takes_lists_and_reads_back_from_json() -> None:
    profile = Profile({"x": ([1, 3], [4, 3], [8, 3])})  # type: ignore[dict-item]
    assert profile.shapes["x"] == ((1, 3), (4, 3), (8, 3))
    assert Profile(**profile.to_json()) == profile  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 3), (1, 3), (4, 3)), "min <= opt <= max"),
        (((1, 3), (2, 3), (4, 2)), "min <= opt <= max"),
        (((1, 3), (2,), (4, 3)), "mixes ranks"),
        (((-1, 3), (2, 3), (4, 3)), "negative size"),
        (((1, 3), (2, 3)), "has 2 shapes"),
    ],
)
def test_an_impossible_profile_is_refused_with_the_input(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(UsageError, match="'image'") as caught:
        Profile({"image": shapes})  # type: ignore[dict-item]
    assert words in str(caught.value)


X = Input("x", (-1, 128), is_shape=False)


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ([], "input 'x' [?x128] is dynamic, and no profile was given"),
        ([Profile({})], "input 'x' [?x128] is dynamic and has no shapes"),
        ([Profile({"y": ((1,), (1,), (1,))})], "speaks of input 'y'"),
        ([Profile({"x": ((1, 128), (2, 128), (2, 129))})], "which 2x129 does not fit"),
        ([Profile({"x": ((1,), (2,), (3,))})], "which 1 does not fit"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_told_by_input(profiles: list[Profile], words: str) -> None:
    assert words in (profile_error([X], profiles) or "")


def test_a_fitting_profile_and_a_static_model_need_nothing() -> None:
    assert profile_error([X], [Profile({"x": ((1, 128), (2, 128), (4, 128))})]) is None
    assert profile_error([Input("x", (4, 128), is_shape=False)], []) is None


def test_an_input_that_is_a_shape_is_refused_with_what_to_do() -> None:
    size = Input("size", (2,), is_shape=True)
    said = profile_error([size], [Profile({"size": ((2,), (2,), (2,))})]) or ""
    assert "input 'size' is a shape" in said
    assert "make that size a constant" in said


def test_progress_of_nested_phases_never_falls_and_ends_at_one() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    shares = [phases.step("build", 0)]
    phases.start("inner", "build", 4)
    shares += [phases.step("inner", index) for index in range(4)]
    phases.finish("inner")
    shares.append(phases.step("build", 1))
    assert shares == sorted(shares) == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


@pytest.mark.parametrize("name", ENGINES)
def test_every_target_has_an_engine_with_a_stable_key(name: str, tmp_path: Path) -> None:
    engine = for_target(parse_target(name))
    assert engine.name == name
    assert engine.key() == for_target(parse_target(name)).key()
    with pytest.raises(ModelError, match="no model file"):
        engine.check(tmp_path / "missing.onnx")


def test_the_key_tells_options_apart() -> None:
    assert for_target(parse_target("tensorrt-rtx:sm89")).key() != for_target(parse_target("tensorrt-rtx")).key()


def test_unknown_targets_and_sms_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown target 'abacus'"):
        for_target(Target("abacus"))
    with pytest.raises(EngineError, match="sm90.*sm89"):
        for_target(Target("tensorrt-rtx", ("sm90",)))


def test_nodes_that_a_library_names_are_found_with_their_operators() -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["b", "s"], ["i"], name="k_nms"),
        helper.make_node("Relu", ["i"], ["y"], name="r_1"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert nodes_in("k_nms_181 has no runners that implement it", graph) == [("k_nms", "NonMaxSuppression")]
    assert nodes_in("[r_1] and 'k_nms'", graph) == [("k_nms", "NonMaxSuppression"), ("r_1", "Relu")]
    assert nodes_in("something else went wrong", graph) == []


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (
            "UNSUPPORTED_NODE: Assertion failed: ctx->f(initializer, &w): Failed to import initializer: labels.",
            "its constant 'labels' has a type that TensorRT does not have, such as text",
        ),
        ("Unsupported reduction type", "a ScatterElements or ScatterND that adds up"),
        ("This version of TensorRT does not support training_mode == 1 in BatchNormalization", "model.eval()"),
    ],
)
def test_words_of_the_parser_say_what_they_mean(said: str, means: str) -> None:
    assert means in str(Diagnostic("", "", said))
