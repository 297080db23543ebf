"""How exported decoders are run: tokens, and logits computed in pieces with the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.runtime.session import Session
from tests.kit.architectures import VOCABULARY


def tokens(batch: int, length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (batch, length))


DECODERS = ("llama", "gemma", "mixtral")


LAYERS, HEADS = 2, 2


def steps(session: Session, ids: Any, lengths: list[int]) -> Any:
    """Logits of all tokens, computed in pieces with the cache, from an empty one on."""
    width: Any = session.inputs["past_key_values.0.key"][1][3]
    kept = {
        f"past_key_values.{layer}.{part}": np.zeros((len(ids), HEADS, 0, width), np.float32)
        for layer in range(LAYERS)
        for part in ("key", "value")
    }
    found, at = [], 0
    for length in lengths:
        end = at + length
        feeds = {
            "input_ids": ids[:, at:end],
            "attention_mask": np.ones((len(ids), end), np.int64),
            "position_ids": np.tile(np.arange(at, end), (len(ids), 1)),
        }
        got = session.run(feeds | kept)
        found.append(got["logits"])
        kept = {name: got[name.replace("past_key_values", "present")] for name in kept}
        at = end
    return np.concatenate(found, axis=1)
