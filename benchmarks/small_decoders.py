"""Trains two small decoders on text: `python -m benchmarks.small_decoders NAME TEXT OUT [--steps N] [--seed N]`.

NAME is gemma or mixtral. TEXT is a folder of .txt files, of which all is used: what is to be evaluated belongs
elsewhere. OUT becomes a Hugging Face folder (config.json, model.safetensors, tokenizer.json) with `training.json`
beside them. On two cores each takes some minutes. They are as small as a model can be that has learnt more than how
frequent words are, and have the parts that the large ones of their kind have:

    gemma    Gemma 3: GeGLU, queries and keys normed, two layers of three see a window of 64 tokens, tied embeddings,
             embeddings times the root of the width, a begin-of-text token in front of every text
    mixtral  Mixtral: SwiGLU, four experts of which a router chooses two, grouped queries, no begin-of-text token
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
import torch
import transformers

VOCABULARY: Final = 2048
BEGIN: Final = "<bos>"
LENGTH: Final = 256  # tokens of a window
BATCH: Final = 8
STEPS: Final = 700
RATE: Final = 3e-3  # the highest learning rate
WARM_UP: Final = 30  # steps
HELD: Final = 32  # windows from the end of the text that are not trained on, to see that it has learnt
SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}


def gemma() -> Any:
    """5.3 million weights."""
    config = transformers.Gemma3TextConfig(
        **SIZES,
        intermediate_size=768,
        num_hidden_layers=6,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    return transformers.Gemma3ForCausalLM(config)


def mixtral() -> Any:
    """8.1 million weights."""
    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=512, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2
    )
    config.output_router_logits = True  # the loss then has the part that keeps experts evenly busy
    return transformers.MixtralForCausalLM(config)


DECODERS: Final[dict[str, Callable[[], Any]]] = {"gemma": gemma, "mixtral": mixtral}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains one; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_decoders", description=__doc__)
    parser.add_argument("name", choices=DECODERS)
    parser.add_argument("text", type=Path, help="folder of .txt files")
    parser.add_argument("out", type=Path, help="the folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = [path.read_text(encoding="utf8") for path in sorted(options.text.glob("*.txt"))]
    if not texts:
        parser.error(f"{options.text} has no .txt file")
    tokenizer = train_tokenizer(texts, begin=options.name == "gemma")
    save_tokenizer(tokenizer, options.out)
    tokens = [np.array(one.ids, np.int64) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    figures = train(options.name, tokens, options.out, steps=options.steps, seed=options.seed)
    (options.out / "training.json").write_text(json.dumps(figures, indent=1), encoding="utf8")
    print(json.dumps(figures))
    return 0


def train_tokenizer(texts: Sequence[str], *, begin: bool) -> tokenizers.Tokenizer:
    """Byte-level BPE; with `begin`, its post-processor puts <bos> (id 0) in front."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if begin:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
        )
    return made


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Saves it as transformers reads it; without its class written down, that of the architecture would be taken."""
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1), encoding="utf8")


def train(name: str, tokens: Sequence[np.ndarray[Any, Any]], out: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """Trains on windows from all texts alike and saves the model; returns what can be said about it.

    Returns:
        Perplexity of windows that were not trained on, and the perplexity of their tokens by frequency alone.
    """
    torch.set_num_threads(1)  # the same weights on any number of cores; at this size more gain little
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    model = DECODERS[name]().train()
    held = np.stack([part[-LENGTH * (i + 1) :][:LENGTH] for i in range(HELD // len(tokens)) for part in tokens])
    trained = [part[: -LENGTH * (HELD // len(tokens) + 1)] for part in tokens]
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95)
    )
    begin = name == "gemma"
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        batch = torch.from_numpy(_batch(trained, rng, begin=begin))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()
    model.config.output_router_logits = False
    figures = {
        "model": name,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": VOCABULARY,
        "steps": steps,
        "tokens": steps * BATCH * LENGTH,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "held_out_perplexity": _perplexity(model, held, begin=begin),
        "unigram_perplexity": _unigram(np.concatenate(trained), held),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    model.save_pretrained(out)
    return figures


def _batch(
    texts: Sequence[np.ndarray[Any, Any]], rng: np.random.Generator, *, begin: bool
) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = []
    for _ in range(BATCH):
        text = texts[int(rng.integers(len(texts)))]
        at = rng.integers(len(text) - LENGTH)
        rows.append(text[at : at + LENGTH])
    return _opened(np.stack(rows), begin=begin)


def _opened(rows: np.ndarray[Any, Any], *, begin: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Windows with the begin-of-text token, id 0, in place of their last token's room."""
    return np.concatenate([np.zeros((len(rows), 1), np.int64), rows[:, :-1]], 1) if begin else rows


def _perplexity(model: Any, rows: np.ndarray[Any, Any], *, begin: bool) -> float:
    with torch.no_grad():
        losses = [
            model(input_ids=ids[None], labels=ids[None]).loss for ids in torch.from_numpy(_opened(rows, begin=begin))
        ]
    return float(torch.stack(losses).mean().exp())


def _unigram(trained: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> float:
    """What knowing how frequent tokens are is worth; each counts once more than it was seen."""
    counts = np.bincount(trained, minlength=VOCABULARY) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[rows].mean()))


if __name__ == "__main__":
    sys.exit(main())
