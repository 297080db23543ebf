"""Decoders compute what torch computes at sizes that were not traced, with a cache and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.runtime.session import Session
from tests.kit.architectures import VOCABULARY, WINDOW, Exports
from tests.kit.frontends.exported import DECODERS, HEADS, LAYERS, steps, tokens


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lengths", [[1], [7], [5, 1], [5, 7], [1, 1, 1], [7, 1, 5]], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_with_a_cache_take_any_batch_sequence_and_past(
    exports: Exports, name: str, batch: int, lengths: list[int]
) -> None:
    model, made = exports(name)
    ids = tokens(batch, sum(lengths))
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(steps(Session(made.path), ids, lengths), want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_decoders_without_a_cache_take_any_batch_and_sequence(exports: Exports, name: str) -> None:
    model, made = exports(name, past=False)
    session = Session(made.path)
    assert list(session.inputs) == ["input_ids", "attention_mask", "position_ids"]
    for batch, length in ((1, 1), (3, 7), (2, 2 * WINDOW)):
        ids = tokens(batch, length)
        feeds = {"attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(length), (batch, 1))}
        with torch.no_grad():
            want = model(torch.from_numpy(ids)).logits.numpy()
        got = session.run({"input_ids": ids, **feeds})["logits"]
        np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_padding_on_the_left_changes_nothing(exports: Exports) -> None:
    session = Session(exports("gemma")[1].path)
    ids = tokens(1, 6)
    empty = {name: np.zeros((1, HEADS, 0, 16), np.float32) for name in session.inputs if name.startswith("past")}
    plain = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(6)[None]}
    padded = {name: np.pad(value, ((0, 0), (3, 0))) for name, value in plain.items()}
    one, other = (session.run(feeds | empty)["logits"] for feeds in (plain, padded))
    np.testing.assert_allclose(other[:, 3:], one, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("name", DECODERS)
def test_interface_has_the_names_and_free_dimensions_of_the_ecosystem(exports: Exports, name: str) -> None:
    made = exports(name)[1]
    inputs, outputs = made.inputs["model.onnx"], made.outputs["model.onnx"]
    width = 16 if name == "gemma" else 8
    assert inputs["input_ids"] == inputs["position_ids"] == ("batch", "sequence")
    assert inputs["attention_mask"] == ("batch", "past + sequence")
    assert outputs["logits"] == ("batch", "sequence", VOCABULARY)
    for layer in range(LAYERS):
        for part in ("key", "value"):
            assert inputs[f"past_key_values.{layer}.{part}"] == ("batch", HEADS, "past", width)
            assert outputs[f"present.{layer}.{part}"] == ("batch", HEADS, "past + sequence", width)
    assert len(inputs) == 3 + 2 * LAYERS
    assert decoder_io.of_model(models.load(made.path)) is not None
    assert made.kind == "decoder with cache"


def test_check_ran_steps_with_the_cache_and_found_the_error_of_rounding(exports: Exports) -> None:
    made = exports("llama")[1]
    told = made.to_json()
    assert {"prefill 3x7", "decode 3x1 after 7", "decode 3x4 after 10", "prefill 1x1"} <= set(told["steps"])
    assert 0 < made.error == max(told["steps"].values()) < 1e-5
    assert any(one.output == "present.1.value" for one in made.checked)


def test_sliding_window_is_filled_by_the_check(exports: Exports) -> None:
    assert f"decode 1x1 after {WINDOW + 3}" in exports("gemma")[1].to_json()["steps"]
