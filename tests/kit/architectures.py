"""Tiny models of torch and transformers with seeded random weights: each kind that `export` knows, two layers deep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from qcompiler.frontends.export import ExportResult, export

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = 4  # of Gemma's sliding attention: shorter than the sequences of tests


def llama() -> Any:
    """Grouped queries, SwiGLU, RMSNorm, rotary positions."""
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return _seeded(lambda: transformers.LlamaForCausalLM(config))


def gemma() -> Any:
    """Gemma 3: GeGLU, norms of queries and keys, tied embeddings, one layer with a sliding window and one without."""
    config = transformers.Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _seeded(lambda: transformers.Gemma3ForCausalLM(config))


def mixtral() -> Any:
    """A mixture of four experts, of which two see each token."""
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    return _seeded(lambda: transformers.MixtralForCausalLM(config))


def bert() -> Any:
    """An encoder with a pooler, learned positions, GELU and LayerNorm behind each residual."""
    return _seeded(lambda: transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=64)))


def t5() -> Any:
    """An encoder-decoder with relative positions and GeGLU."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=None,
    )
    return _seeded(lambda: transformers.T5ForConditionalGeneration(config))


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gemma": gemma, "mixtral": mixtral, "bert": bert, "t5": t5}


def _seeded(make: Callable[[], Any]) -> Any:
    """A model whose weights are large enough for tokens to differ, and no two of which are equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.2)
            if "norm" in name.lower() and weight.dim() == 1:
                weight.data += 1.0
    return model.eval()


class Exports:
    """Each model exported once a session, when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, bool], tuple[Any, ExportResult]] = {}

    def __call__(self, name: str, *, past: bool = True) -> tuple[Any, ExportResult]:
        """The torch model and its export, with a cache where it can have one and `past` is not False."""
        key = (name, past)
        if key not in self._made:
            model = MODELS[name]()
            path = self._folder / name / ("past" if past else "whole") / "model.onnx"
            self._made[key] = (model, export(model, path, past=None if past else False))
        return self._made[key]
