"""Encoder-decoders such as T5 and BART: two graphs, an encoder that runs once and a decoder that runs for each token.

With a cache the encoder also computes the keys and values of the decoder's cross attention, which depend on its result
alone: `present.N.encoder.key` / `.value`. They are inputs of every step of the decoder under the names
`past_key_values.N.encoder.key` / `.value`, beside its own `past_key_values.N.decoder.key` / `.value`. So one decoder
serves the first step, with no past, and all later ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare, token_ids
from qcompiler.frontends.decoder import CacheSizes, cache_with
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet

BATCH, SEQUENCE, PAST, SOURCE = 2, 3, 5, 7
CHECKED = ((3, 7, 2, (2, 1, 1, 3)), (1, 1, 0, (1, 1)))
"""Batch, tokens of the encoder, how many of them are padding in the first row, and tokens of each decoder step."""


def cache_of(loaded: LoadedModule) -> CacheSizes:
    """Heads and widths of the decoder's keys and values, which are those of its cross attention too.

    Raises:
        ModelError: the model does not read tokens, or does not keep one key and one value for each token and layer.
    """
    import torch

    model = loaded.module
    if getattr(model, "main_input_name", "") != "input_ids":
        raise ModelError(
            f"{loaded.name} ({type(model).__name__}) reads '{model.main_input_name}', and only encoder-decoders that "
            "read token ids are known: export its parts with file.py:function, which returns a module and example "
            "inputs."
        )
    ones = torch.ones(1, 3, dtype=torch.int64)
    with torch.no_grad(), quiet():
        kept = model(input_ids=ones[:, :2], decoder_input_ids=ones, use_cache=True).past_key_values
    own, cross = (getattr(kept, f"{name}_attention_cache", None) for name in ("self", "cross"))
    sizes = [
        [tuple(layer.keys.shape[i] for i in (1, 3)) for layer in getattr(one, "layers", ())] for one in (own, cross)
    ]
    if not sizes[0] or sizes[0] != sizes[1]:
        raise ModelError(
            f"{loaded.name} ({type(model).__name__}) does not keep keys and values for itself and its encoder in each "
            "layer: export it without the cache (--no-past)."
        )
    return CacheSizes(tuple((heads, width, width) for heads, width in sizes[0]))


def encoder_job(loaded: LoadedModule, cache: CacheSizes | None) -> Job:
    """How the encoder is traced."""
    import torch

    model = loaded.module
    inputs = {name: torch.ones(BATCH, SOURCE, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    outputs = ["last_hidden_state", *(_names("present", "encoder", cache) if cache is not None else ())]

    def forward(ids: Any, mask: Any) -> Any:
        encoded = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        if cache is None:
            return (encoded.last_hidden_state,)
        out = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids[:, :1] * 0, use_cache=True)
        return (encoded.last_hidden_state, *_tensors(out.past_key_values.cross_attention_cache))

    return Job(forward, model, inputs, axes, outputs, f"the encoder of {loaded.name}")


def decoder_job(loaded: LoadedModule, cache: CacheSizes | None) -> Job:
    """How the decoder is traced."""
    import torch

    model = loaded.module
    inputs: dict[str, Any] = {
        "input_ids": torch.ones(BATCH, SEQUENCE, dtype=torch.int64),
        "encoder_attention_mask": torch.ones(BATCH, SOURCE, dtype=torch.int64),
    }
    axes = {"input_ids": {0: "batch", 1: "sequence"}, "encoder_attention_mask": {0: "batch", 1: "encoder_sequence"}}
    label = f"the decoder of {loaded.name}"
    if cache is None:
        width = _width(model)
        inputs["encoder_hidden_states"] = torch.zeros(BATCH, SOURCE, width)
        axes["encoder_hidden_states"] = axes["encoder_attention_mask"]
        return Job(_cacheless(model), model, inputs, axes, ["logits"], label)
    own, cross = _names("past_key_values", "decoder", cache), _names("past_key_values", "encoder", cache)
    inputs |= dict(zip(own, cache.empty(BATCH, PAST).values(), strict=True))
    inputs |= dict(zip(cross, cache.empty(BATCH, SOURCE).values(), strict=True))
    axes |= {name: {0: "batch", 2: "past"} for name in own}
    axes |= {name: {0: "batch", 2: "encoder_sequence"} for name in cross}
    return Job(_cached(model, len(own)), model, inputs, axes, ["logits", *_names("present", "decoder", cache)], label)


def _cacheless(model: Any) -> Any:
    def forward(ids: Any, mask: Any, encoded: Any) -> Any:
        out = model(encoder_outputs=(encoded,), attention_mask=mask, decoder_input_ids=ids, use_cache=False)
        return (out.logits,)

    return forward


def _cached(model: Any, tensors: int) -> Any:
    def forward(ids: Any, mask: Any, *kept: Any) -> Any:
        from transformers import EncoderDecoderCache

        cache = EncoderDecoderCache(cache_with(kept[:tensors]), cache_with(kept[tensors:]))
        cache.is_updated = dict.fromkeys(cache.is_updated, True)
        # Only its sizes are looked at: the cross attention reads the cache.
        encoded = kept[tensors].new_zeros(mask.shape[0], mask.shape[1], _width(model))
        out = model(
            encoder_outputs=(encoded,),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *_tensors(out.past_key_values.self_attention_cache))

    return forward


def _width(model: Any) -> int:
    return int(model.get_encoder().get_input_embeddings().weight.shape[1])


def _names(prefix: str, side: str, cache: CacheSizes) -> list[str]:
    parts = [name.rsplit(".", 2) for name in cache.names(prefix)]
    return [f"{front}.{index}.{side}.{part}" for front, index, part in parts]


def _tensors(cache: Any) -> list[Any]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def encoder_check(loaded: LoadedModule, traced: Job, cache: CacheSizes | None) -> Check:
    """Compares with the encoder as its users call it, at all tokens that are no padding."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, length, padded, _ in CHECKED:
            ids, mask = _tokens(loaded, batch, length, padded)
            want = _reference(loaded.module, ids, mask, ids[:, :1], cache is not None)
            got = run({"input_ids": ids, "attention_mask": mask})
            step, real = f"encode {batch}x{length}", mask.astype(bool)
            state = want.encoder_last_hidden_state.numpy()
            yield compare(step, "last_hidden_state", got["last_hidden_state"][real], state[real])
            if cache is not None:
                cross = _tensors(want.past_key_values.cross_attention_cache)
                for name, tensor in zip(traced.outputs[1:], cross, strict=True):
                    yield compare(step, name, got[name].swapaxes(1, 2)[real], tensor.numpy().swapaxes(1, 2)[real])

    return each


def decoder_check(loaded: LoadedModule, traced: Job, cache: CacheSizes | None) -> Check:
    """Compares with the decoder as its users call it: a first step, and with a cache some more from there on."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, length, padded, lengths in CHECKED:
            ids, mask = _tokens(loaded, batch, length, padded)
            words = ids[:, : sum(lengths)] if length >= sum(lengths) else np.repeat(ids, sum(lengths), axis=1)
            if cache is None:
                yield from _whole(loaded.module, run, ids, mask, words)
            else:
                yield from _steps(loaded.module, traced, cache, run, (ids, mask, words, lengths))

    return each


def _whole(model: Any, run: Run, ids: Any, mask: Any, words: Any) -> Iterator[Compared]:
    want = _reference(model, ids, mask, words, False)
    encoded = want.encoder_last_hidden_state.numpy()
    got = run({"input_ids": words, "encoder_attention_mask": mask, "encoder_hidden_states": encoded})
    yield compare(f"decode {'x'.join(map(str, words.shape))}", "logits", got["logits"], want.logits.numpy())


def _steps(
    model: Any, traced: Job, cache: CacheSizes, run: Run, feed: tuple[Any, Any, Any, tuple[int, ...]]
) -> Iterator[Compared]:
    ids, mask, words, lengths = feed
    first = _reference(model, ids, mask, words[:, :1], True)
    cross = [tensor.numpy() for tensor in _tensors(first.past_key_values.cross_attention_cache)]
    fixed = {
        "encoder_attention_mask": mask,
        **dict(zip(_names("past_key_values", "encoder", cache), cross, strict=True)),
    }
    own = _names("past_key_values", "decoder", cache)
    kept: Mapping[str, Any] = dict(zip(own, (x.numpy() for x in cache.empty(len(ids)).values()), strict=True))
    before, at = None, 0
    for length in lengths:
        here = words[:, at : at + length]
        want = _reference(model, ids, mask, here, True, before)
        got = run({"input_ids": here, **fixed, **kept})
        step, at, before = f"decode {len(ids)}x{length} after {at}", at + length, want.past_key_values
        yield compare(step, "logits", got["logits"], want.logits.numpy())
        for name, tensor in zip(traced.outputs[1:], _tensors(before.self_attention_cache), strict=True):
            yield compare(step, name, got[name], tensor.numpy())
        kept = {name: got[name.replace("past_key_values", "present")] for name in own}


def _reference(model: Any, ids: Any, mask: Any, words: Any, cached: bool, before: Any = None) -> Any:
    import torch

    feeds = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": words}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
    with torch.no_grad(), quiet():
        return model(**tensors, past_key_values=before, use_cache=cached, return_dict=True)


def _tokens(loaded: LoadedModule, batch: int, length: int, padded: int) -> tuple[Any, Any]:
    ids, _ = token_ids(loaded.tokenizer, loaded.module.config.vocab_size, batch * length)
    rows = np.asarray(ids, np.int64).reshape(batch, length)
    mask = np.ones_like(rows)
    mask[0, length - padded :] = 0
    return rows, mask
