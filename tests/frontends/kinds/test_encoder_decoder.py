"""Encoder and decoder, exported apart, together compute what transformers computes."""

from __future__ import annotations

import numpy as np
import torch

from qcompiler.runtime.session import Session
from tests.kit.architectures import Exports
from tests.kit.frontends.exported import tokens


def test_encoder_and_decoder_together_generate_what_transformers_does(exports: Exports) -> None:
    model, made = exports("t5")
    assert [path.name for path in made.paths] == ["encoder_model.onnx", "decoder_model.onnx"]
    encoder, decoder = map(Session, made.paths)
    ids, mask = tokens(2, 9), np.ones((2, 9), np.int64)
    mask[0, 6:] = 0
    feeds = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    want = model.generate(**feeds, max_new_tokens=6, do_sample=False).numpy()
    encoded = encoder.run({"input_ids": ids, "attention_mask": mask})
    fixed = {name.replace("present", "past_key_values"): x for name, x in encoded.items() if "present" in name}
    own = [name for name in decoder.inputs if ".decoder." in name]
    kept = {name: np.zeros((2, 4, 0, 8), np.float32) for name in own}
    words = np.zeros((2, 1), np.int64)
    for _ in range(6):
        got = decoder.run({"input_ids": words[:, -1:], "encoder_attention_mask": mask, **fixed, **kept})
        kept = {name: got[name.replace("past_key_values", "present")] for name in own}
        words = np.concatenate([words, got["logits"].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(words, want)


def test_a_decoder_that_measures_its_masks_reads_pictures_in_batches(exports: Exports) -> None:
    model, made = exports("trocr")
    encoder, decoder = map(Session, made.paths)
    pictures = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)
    words = np.asarray([[1, 5, 7], [1, 8, 9], [1, 3, 3]])
    with torch.no_grad():
        want = model(pixel_values=torch.from_numpy(pictures), decoder_input_ids=torch.from_numpy(words)).logits.numpy()
    encoded = encoder.run({"pixel_values": pictures})
    fixed = {name.replace("present", "past_key_values"): x for name, x in encoded.items() if "present" in name}
    kept = {name: np.zeros((3, 4, 0, 8), np.float32) for name in decoder.inputs if ".decoder." in name}
    got = decoder.run({"input_ids": words, **fixed, **kept})["logits"]
    np.testing.assert_allclose(got, want, atol=1e-4)
