"""Decoders by the names of their inputs: what is detected, which shapes and feeds follow, what engines are made for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.build import build
from qcompiler.compiler.compile import compile
from qcompiler.engines.gpu import fitting
from qcompiler.engines.listing import read
from qcompiler.errors import ModelError, UsageError
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs, InputShapes
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import GenerationTable, QfemTable, SmoothQuantTable
from qcompiler.runtime.session import Session
from tests.kit import decoder

INT64: np.dtype[Any] = np.dtype(np.int64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder with a cache, as a file."""
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    onnx.save(decoder.decoder(), path)
    return path


def found(path: Path) -> decoder_io.Decoder:
    known = decoder_io.of_model(models.load(path))
    assert known is not None
    return known


def test_the_test_model_with_a_cache_computes_what_it_does_without_one() -> None:
    ids = decoder.tokens(2, 9)
    whole = Session(_graph(cache=False)).run({"input_ids": ids})["logits"]
    session = Session(_graph(cache=True))
    told = session.run(decoder.feeds(ids[:, :4]))
    for position in range(4, 9):
        past = [value for name, value in told.items() if name != "logits"]
        told = session.run(decoder.feeds(ids[:, position : position + 1], past))
        np.testing.assert_allclose(told["logits"][:, 0], whole[:, position], atol=1e-5)


def _graph(*, cache: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    return decoder.decoder(cache=cache), {}


def test_the_cache_is_found_with_its_growing_axis_and_its_size(saved: Path) -> None:
    known = found(saved)
    assert [(pair.past, pair.present) for pair in known.pairs][:2] == [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
    ]
    assert {(pair.axis, pair.dtype, pair.bytes_per_token) for pair in known.pairs} == {(2, "float32", 2 * 16 * 4)}
    stored = known.to_json()
    assert stored is not None
    assert stored["bytes_per_token"] == 4 * 2 * 16 * 4
    assert stored["pairs"][0]["shape"] == ["batch", 2, "past", 16]


def test_feeds_of_a_step_count_what_is_in_the_cache(saved: Path) -> None:
    feeds = found(saved).feeds(decoder.tokens(2, 3), past=5)
    assert feeds["attention_mask"].shape == (2, 8)
    assert feeds["position_ids"].tolist() == [[5, 6, 7]] * 2
    assert {value.shape for value in found(saved).empty(2).values()} == {(2, 2, 0, 16)}


def test_a_model_without_a_cache_is_a_decoder_too() -> None:
    known = decoder_io.detect({"input_ids": (INT64, ("b", "s"))}, {"logits": ("b", "s", 99)})
    assert known is not None
    assert known.pairs == ()
    assert known.to_json() is None


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"ids": ("b", "s")}, {"logits": ("b", "s", 9)}),
        ({"input_ids": ("b", "s")}, {"scores": ("b", "s", 9)}),
        ({"input_ids": ("b", "s"), "token_type_ids": ("b", "s")}, {"logits": ("b", "s", 9)}),
        ({"input_ids": ("b", "s")}, {"logits": ("b", 2)}),
        ({"input_ids": ("s",)}, {"logits": ("b", "s", 9)}),
    ],
    ids=["other tokens", "no logits", "an encoder", "a classifier", "no batch"],
)
def test_what_is_no_decoder(inputs: dict[str, tuple[str, ...]], outputs: dict[str, tuple[str | int, ...]]) -> None:
    declared: Inputs = {name: (INT64, shape) for name, shape in inputs.items()}
    assert decoder_io.detect(declared, outputs) is None


def test_an_input_that_nobody_knows_is_named() -> None:
    inputs = {"input_ids": (INT64, ("b", "s")), "encoder_hidden_states": (INT64, ("b", "e", 8))}
    known = decoder_io.detect(inputs, {"logits": ("b", "s", 9)})
    assert known is not None
    with pytest.raises(ModelError, match="encoder_hidden_states"):
        known.shapes(1, 1, 0)


def test_a_fixed_batch_takes_no_other() -> None:
    known = decoder_io.detect({"input_ids": (INT64, (1, "s"))}, {"logits": (1, "s", 9)})
    assert known is not None
    with pytest.raises(ModelError, match=r"1x\? only, not of 2x3"):
        known.feeds(decoder.tokens(2, 3), 0)


def test_a_fixed_size_cache_or_that_of_an_encoder_does_not_grow() -> None:
    inputs = {
        "input_ids": (INT64, ("b", "s")),
        "past_key_values.0.key": (np.dtype(np.float32), ("b", 2, 64, 8)),
    }
    known = decoder_io.detect(inputs, {"logits": ("b", "s", 9), "present.0.key": ("b", 2, 64, 8)})
    assert known is not None
    assert known.pairs == ()
    assert known.unknown == ("past_key_values.0.key",)


def test_profiles_of_both_phases_fit_themselves(saved: Path) -> None:
    prefill, decode = found(saved).profiles((1, 2, 4), 32, 128)
    assert prefill["input_ids"] == ((1, 1), (2, 32), (4, 128))
    assert prefill["past_key_values.0.key"] == ((1, 2, 0, 16), (2, 2, 0, 16), (4, 2, 127, 16))
    assert decode["input_ids"] == ((1, 1), (2, 1), (4, 1))
    assert decode["past_key_values.1.value"] == ((1, 2, 0, 16), (2, 2, 80, 16), (4, 2, 127, 16))
    for profile in (prefill, decode):
        for point in range(3):
            new, past = profile["input_ids"][point][1], profile["past_key_values.0.key"][point][2]
            assert profile["attention_mask"][point][1] == new + past


def test_lengths_come_from_the_data_where_nothing_is_asked_for() -> None:
    seen = InputShapes((1, 20), (2, 50), (4, 60))
    assert decoder_io.lengths(seen, None, None, None) == ((1, 2, 4), 30, 60)  # half of the longest leaves room
    assert decoder_io.lengths(seen, None, None, 200) == ((1, 2, 4), 50, 200)
    assert decoder_io.lengths(seen, 1, 7, 200) == ((1, 1, 1), 7, 200)
    assert decoder_io.lengths(None, None, None, 64) == ((1, 1, 1), 32, 64)
    with pytest.raises(UsageError, match="--max-length"):
        decoder_io.lengths(None, None, 16, None)


def test_a_prompt_leaves_room_for_an_answer(saved: Path) -> None:
    with pytest.raises(UsageError, match="no room"):
        GenerationTable(max_length=64, prompt=64)
    with pytest.raises(UsageError, match="no room"):
        found(saved).profiles((1, 1, 1), 64, 64)


def test_the_profile_of_a_step_is_the_decode_and_that_of_a_prompt_the_prefill(saved: Path) -> None:
    known = found(saved)
    profiles = known.profiles((1, 1, 4), 32, 128)
    at = [fitting(known.shapes(*sizes), profiles) for sizes in ((1, 32, 0), (1, 1, 40), (4, 1, 127), (2, 8, 3))]
    assert at == [0, 1, 1, 0]
    assert fitting(known.shapes(9, 1, 1), profiles) == 0  # nothing fits: the library says what is wrong


def test_an_engine_is_built_with_both_phases_and_its_cache_is_named(saved: Path, tmp_path: Path) -> None:
    def feeds() -> list[decoder.Feeds]:
        return [decoder.feeds(decoder.tokens(1, 20 + i, seed=i)) for i in range(4)]

    recipe = Recipe(
        target="tensorrt-rtx:sm89",
        calibrator="minmax",
        smooth_quant=SmoothQuantTable(alpha="off"),
        qfem=QfemTable(alpha="off"),
        io_types="high-precision",
        generation=GenerationTable(max_length=96, prompt=24, batch=2),
    )
    result = compile(saved, data=feeds, recipe=recipe, output=tmp_path / "d.engine")
    record = json.loads(result.manifest_path.read_text())
    prefill, decode = (one["shapes"] for one in record["engine"]["profiles"])
    assert prefill["input_ids"] == [[1, 1], [1, 24], [2, 96]]
    assert decode["past_key_values.1.key"] == [[1, 2, 0, 16], [1, 2, 60, 16], [2, 2, 95, 16]]
    assert record["warnings"][0].startswith("only 4 different samples of data")
    assert not any("--max-length" in text or "axis" in text for text in record["warnings"])
    assert record["cache"]["bytes_per_token"] == 4 * 2 * 16 * 2  # FP16, as the recipe asks
    assert {pair["dtype"] for pair in record["cache"]["pairs"]} == {"float16"}
    assert record["audit"]["ok"]
    listings = [one for one in read(tmp_path / "d.engine") if not one.body]
    assert len(listings) == 2
    assert all(re.search(r" \[profile 1\]", op.name) for op in listings[1].ops if op.kind == "fully_connected")


def test_one_phase_serves_both_where_the_recipe_says_so(saved: Path, tmp_path: Path) -> None:
    recipe = Recipe(generation=GenerationTable(max_length=64, prompt=16, phases="one"))
    result = build(saved, output=tmp_path / "d.engine", recipe=recipe)
    (profile,) = result.manifest["engine"]["profiles"]
    assert profile["shapes"]["input_ids"] == [[1, 1], [1, 16], [1, 64]]
    assert profile["shapes"]["past_key_values.0.key"] == [[1, 2, 0, 16], [1, 2, 0, 16], [1, 2, 63, 16]]


def test_an_engine_needs_to_know_how_long_texts_get(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="how long texts get"):
        build(saved, output=tmp_path / "d.engine")
    assert list(tmp_path.iterdir()) == []


def test_shapes_of_the_user_stand_over_the_phases(saved: Path, tmp_path: Path) -> None:
    known = found(saved)
    shapes = known.profiles((1, 1, 1), 4, 16)[0]
    result = build(saved, output=tmp_path / "d.engine", recipe=Recipe(shapes=shapes))
    assert len(result.manifest["engine"]["profiles"]) == 1


def test_the_rows_of_the_table_that_an_input_picks_from(saved: Path) -> None:
    graph = models.load(saved).graph
    assert decoder_io.looked_up(graph)["input_ids"] == decoder_io.embedding_rows(graph)
    assert "attention_mask" not in decoder_io.looked_up(graph)
