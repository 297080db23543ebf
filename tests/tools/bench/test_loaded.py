"""A model that is timed: texts are written token by token, with a cache or without, and compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.tools.bench.loaded import RERUNS, GrowingText, load, write
from tests.kit import cases, decoder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny decoder, with and without a cache, and two ordinary models."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(decoder.decoder(), folder / "cache.onnx")
    onnx.save(decoder.decoder(cache=False), folder / "plain.onnx")
    onnx.save(decoder.decoder(batch=1), folder / "one.onnx")
    onnx.save(cases.convnet(), folder / "conv.onnx")
    onnx.save(cases.transformer(), folder / "transformer.onnx")
    return folder


def logits(text: GrowingText, *pieces: Any) -> np.ndarray:
    """The newest logits behind each piece, [batch, pieces, vocabulary]."""
    return np.stack([text.step(piece)[:, -1].copy() for piece in pieces], axis=1)


@pytest.mark.parametrize("name", ["cache.onnx", "plain.onnx"])
def test_a_text_written_token_by_token_has_the_logits_of_the_whole_text(files: Path, name: str) -> None:
    tokens = decoder.tokens(3, 14)
    whole = load(files / "plain.onnx", "onnxruntime").begin(3).step(tokens)
    model = load(files / name, "onnxruntime", threads=1)
    steps = logits(model.begin(3), tokens[:, :5], *(tokens[:, i : i + 1] for i in range(5, 14)))
    np.testing.assert_allclose(steps, whole[:, 4:], atol=2e-5)
    pieces = logits(model.begin(3), tokens[:, :2], tokens[:, 2:9], tokens[:, 9:])
    np.testing.assert_allclose(pieces, whole[:, [1, 8, 13]], atol=2e-5)


def test_texts_do_not_see_each_other(files: Path) -> None:
    model = load(files / "cache.onnx", "onnxruntime")
    one, other = model.begin(1), model.begin(1)
    first = one.step(decoder.tokens(1, 6)).copy()
    other.step(decoder.tokens(1, 9, seed=1))
    again = model.begin(1).step(decoder.tokens(1, 6))
    np.testing.assert_array_equal(first, again)


def test_every_token_behind_the_prompt_is_a_step_of_its_own(files: Path) -> None:
    tokens = decoder.tokens(2, 12)
    done = write(load(files / "cache.onnx", "onnxruntime"), tokens, 5, repeat=3)
    assert len(done.prefill_s) == 3
    assert done.positions == (4, 5, 6, 7, 8, 9, 10)  # behind the last token nothing is asked for
    assert len(done.decode_s) == 6
    whole = load(files / "plain.onnx", "onnxruntime").begin(2).step(tokens)
    np.testing.assert_array_equal(done.chosen, whole[:, 4:11].argmax(axis=-1))


def test_a_model_without_a_cache_is_timed_at_some_places_of_the_answer(files: Path) -> None:
    done = write(load(files / "plain.onnx", "onnxruntime"), decoder.tokens(1, 40), 8)
    assert len(done.decode_s) == RERUNS
    assert (done.positions[0], done.positions[1], done.positions[-1]) == (7, 8, 38)


@pytest.mark.parametrize(("generate", "steps"), [(1, 0), (2, 1), (3, 2)])
def test_short_answers(files: Path, generate: int, steps: int) -> None:
    for name in ("plain.onnx", "cache.onnx"):
        done = write(load(files / name, "onnxruntime"), decoder.tokens(1, 4 + generate), 4)
        assert len(done.decode_s) == steps
