"""Vision-language models: three files that, put together, compute what the whole model computes."""

from __future__ import annotations

import json

import numpy as np
import torch

from qcompiler.frontends.kinds.vision_language import is_vision_language
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, VOCABULARY, Exports


def test_files_together_are_the_whole_model(exports: Exports) -> None:
    model, made = exports("llava")
    parts = {path.name.partition("_")[0]: Session(path) for path in made.paths}
    pixels = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    ids = np.asarray([[5, 6, VOCABULARY - 1, VOCABULARY - 1, VOCABULARY - 1, VOCABULARY - 1, 7, 8]])
    features = parts["vision"].run({"pixel_values": pixels})["image_features"]
    embeds = np.array(parts["embed"].run({"input_ids": ids})["inputs_embeds"])
    embeds[ids == VOCABULARY - 1] = features.reshape(4, -1)
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones_like(ids), "position_ids": np.arange(8)[None]}
    kept = {
        f"past_key_values.{n}.{one}": np.zeros((1, 2, 0, 8), np.float32) for n in (0, 1) for one in ("key", "value")
    }
    got = parts["decoder"].run({**feeds, **kept})["logits"]
    with torch.no_grad():
        given = {"input_ids": torch.from_numpy(ids), "pixel_values": torch.from_numpy(pixels)}
        want = model(**given, attention_mask=torch.ones(1, 8, dtype=torch.int64)).logits.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    found = json.loads(made.path.with_name("model.set.json").read_text())
    assert [one["name"] for one in found["parts"]] == ["vision", "embed", "decoder"]
    assert found["constants"]["image_token"] == VOCABULARY - 1
    assert any("in the places of token 95" in note for note in made.notes)


def test_decoders_of_text_are_none() -> None:
    assert not is_vision_language(MODELS["llama"]())
