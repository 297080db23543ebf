"""Exports compute what torch computes at sizes that were not traced: decoders, encoders, experts, encoder-decoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompiler.runtime.session import Session
from tests.kit.architectures import Exports
from tests.kit.frontends.exported import DECODERS, steps, tokens


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_decoding_gives_the_tokens_of_transformers(exports: Exports, name: str) -> None:
    model, made = exports(name)
    session, ids = Session(made.path), tokens(2, 5, seed=1)
    want = model.generate(torch.from_numpy(ids), max_new_tokens=8, do_sample=False, pad_token_id=0).numpy()
    for _ in range(8):
        logits = steps(session, ids, [5] + [1] * (ids.shape[1] - 5))
        ids = np.concatenate([ids, logits[:, -1:].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(ids, want)
