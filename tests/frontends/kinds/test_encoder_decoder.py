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
