"""Encoder-decoders such as T5, BART and Whisper: an encoder that runs once and a decoder that runs for each token.

The encoder reads tokens with a mask, or sound or pictures without one. With a cache it also computes the keys and
values of the decoder's cross attention, which depend on its result alone: `present.N.encoder.key` / `.value`. They are
inputs of every step of the decoder under the names `past_key_values.N.encoder.key` / `.value`, beside its own
`past_key_values.N.decoder.key` / `.value`. So one decoder serves the first step, with no past, and all later ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare, token_ids
from qcompiler.frontends.examples import Inputs, inputs_of
from qcompiler.frontends.kinds.decoder import CacheSizes, cache_with
from qcompiler.frontends.kinds.parts import Link, ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet

BATCH, SEQUENCE, PAST, SOURCE = 2, 3, 5, 7
CHECKED = ((3, 7, 2, (2, 1, 1, 3)), (1, 1, 0, (1, 1)))
"""Batch, length of what the encoder reads, how much of it is padding in the first row, tokens of each decoder step."""


@dataclass(frozen=True)
class _Pair:
    """The model, what its encoder reads, and what its decoder keeps."""

    loaded: LoadedModule
    inputs: Inputs
    cache: CacheSizes | None

    @property
    def model(self) -> Any:
        return self.loaded.module

    @property
    def masked(self) -> bool:
        """Whether the encoder and the attention to it have a mask: those that read tokens do."""
        return "attention_mask" in self.inputs.names

    @property
    def length(self) -> str | None:
        """The name of the length of what the encoder hands on; None where it is always the same."""
        return "encoder_sequence" if len(self.inputs.axes[self.inputs.main]) > 1 else None

    def words(self, batch: int, length: int) -> Any:
        """Token ids for the decoder, int64 [batch, length]."""
        config = self.model.config.get_text_config(decoder=True)
        ids, _ = token_ids(self.loaded.tokenizer, config.vocab_size, batch * length)
        return np.asarray(ids, np.int64).reshape(batch, length)

    def encode(self, tensors: Mapping[str, Any]) -> Any:
        """What the encoder returns."""
        return self.model.get_encoder()(**tensors, return_dict=True)


def kind_of(loaded: LoadedModule, past: bool | None) -> ModelKind:
    """Two graphs: encoder and decoder.

    Raises:
        ModelError: it does not keep one key and one value for each token and layer, and a cache is wanted.
    """
    inputs = inputs_of(loaded)
    if inputs.main != "input_ids":  # masks of sound and pictures hide nothing that the decoder asks for
        inputs = Inputs(inputs.main, (inputs.main,), inputs.axes, inputs.notes, loaded)
    plain = _Pair(loaded, inputs, None)
    pair = plain if past is False else _Pair(loaded, inputs, _cache_of(plain))
    first, second = _encoder_job(pair), _decoder_job(pair)
    parts = (
        ModelPart("encoder", first, _encoder_check(pair, first)),
        ModelPart("decoder", second, _decoder_check(pair, second)),
    )
    return ModelKind("encoder-decoder", parts, tuple(_links(pair)), notes=inputs.notes)


def _links(pair: _Pair) -> Iterator[Link]:
    if pair.cache is None:
        yield Link("encoder", "last_hidden_state", "decoder", "encoder_hidden_states")
        return
    for side, source in (("encoder", "encoder"), ("decoder", "decoder")):
        made, read = _names("present", side, pair.cache), _names("past_key_values", side, pair.cache)
        yield from (Link(source, one, "decoder", other) for one, other in zip(made, read, strict=True))


def _tensors_of(feeds: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}


def _cache_of(pair: _Pair) -> CacheSizes:
    """Heads and widths of the decoder's keys and values, which are those of its cross attention too.

    Raises:
        ModelError: the model does not keep one key and one value for each token and layer.
    """
    kept = _reference(pair, pair.inputs.example(1, 3).feeds, np.ones((1, 3), np.int64), True).past_key_values
    own, cross = (getattr(kept, f"{name}_attention_cache", None) for name in ("self", "cross"))
    sizes = [
        [tuple(layer.keys.shape[i] for i in (1, 3)) for layer in getattr(one, "layers", ())] for one in (own, cross)
    ]
    if not sizes[0] or sizes[0] != sizes[1]:
        raise ModelError(
            f"{pair.loaded.name} ({type(pair.model).__name__}) does not keep keys and values for itself and its "
            "encoder in each layer: export it without the cache (--no-past)."
        )
    return CacheSizes(tuple((heads, width, width) for heads, width in sizes[0]))


def _encoder_job(pair: _Pair) -> Job:
    """How the encoder is traced."""
    model, names, cache = pair.model, pair.inputs.names, pair.cache
    inputs = _tensors_of(pair.inputs.example(BATCH, SOURCE).feeds)
    outputs = ["last_hidden_state", *(_names("present", "encoder", cache) if cache is not None else ())]

    def forward(*tensors: Any) -> Any:
        given = dict(zip(names, tensors, strict=True))
        encoded = pair.encode(given)
        if cache is None:
            return (encoded.last_hidden_state,)
        first = tensors[0].new_zeros(tensors[0].shape[0], 1).long()
        mask = {"attention_mask": given["attention_mask"]} if pair.masked else {}
        out = model(encoder_outputs=encoded, **mask, decoder_input_ids=first, use_cache=True)
        return (encoded.last_hidden_state, *_tensors(out.past_key_values.cross_attention_cache))

    return Job(forward, model, inputs, pair.inputs.axes, outputs, f"the encoder of {pair.loaded.name}")


def _decoder_job(pair: _Pair) -> Job:
    """How the decoder is traced."""
    import torch

    cache, example = pair.cache, _tensors_of(pair.inputs.example(BATCH, SOURCE).feeds)
    with torch.no_grad(), quiet():
        encoded = pair.encode(example).last_hidden_state
    encoded = encoded.flatten(2).transpose(1, 2) if encoded.dim() == 4 else encoded
    length, width = encoded.shape[1:]
    inputs: dict[str, Any] = {"input_ids": torch.ones(BATCH, SEQUENCE, dtype=torch.int64)}
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "batch", 1: "sequence"}}
    if pair.masked:
        inputs["encoder_attention_mask"] = torch.ones(BATCH, length, dtype=torch.int64)
        axes["encoder_attention_mask"] = _free(pair, 1)
    label = f"the decoder of {pair.loaded.name}"
    if cache is None:
        inputs["encoder_hidden_states"] = torch.zeros(BATCH, length, width)
        axes["encoder_hidden_states"] = _free(pair, 1)
        return Job(_cacheless(pair), pair.model, inputs, axes, ["logits"], label)
    own, cross = _names("past_key_values", "decoder", cache), _names("past_key_values", "encoder", cache)
    inputs |= dict(zip(own, cache.empty(BATCH, PAST).values(), strict=True))
    inputs |= dict(zip(cross, cache.empty(BATCH, length).values(), strict=True))
    axes |= {name: {0: "batch", 2: "past"} for name in own}
    axes |= {name: _free(pair, 2) for name in cross}
    outputs = ["logits", *_names("present", "decoder", cache)]
    return Job(_cached(pair, len(own), int(width)), pair.model, inputs, axes, outputs, label)


def _free(pair: _Pair, axis: int) -> dict[int, str]:
    return {0: "batch"} | ({axis: pair.length} if pair.length else {})


def _cacheless(pair: _Pair) -> Any:
    def forward(ids: Any, *rest: Any) -> Any:
        mask = {"attention_mask": rest[0]} if pair.masked else {}
        out = pair.model(encoder_outputs=(rest[-1],), **mask, decoder_input_ids=ids, use_cache=False)
        return (out.logits,)

    return forward


def _cached(pair: _Pair, tensors: int, width: int) -> Any:
    def forward(ids: Any, *rest: Any) -> Any:
        from transformers import EncoderDecoderCache

        kept = rest[1:] if pair.masked else rest
        cache = EncoderDecoderCache(cache_with(kept[:tensors]), cache_with(kept[tensors:]))
        cache.is_updated = dict.fromkeys(cache.is_updated, True)
        # Only its sizes are looked at: the cross attention reads the cache.
        encoded = kept[tensors].new_zeros(ids.shape[0], kept[tensors].shape[2], width)
        out = pair.model(
            encoder_outputs=(encoded,),
            **({"attention_mask": rest[0]} if pair.masked else {}),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *_tensors(out.past_key_values.self_attention_cache))

    return forward


def _names(prefix: str, side: str, cache: CacheSizes) -> list[str]:
    parts = [name.rsplit(".", 2) for name in cache.names(prefix)]
    return [f"{front}.{index}.{side}.{part}" for front, index, part in parts]


def _tensors(cache: Any) -> list[Any]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _encoder_check(pair: _Pair, traced: Job) -> Check:
    """Compares with the encoder as its users call it, at all tokens that are no padding."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, length, padded, _ in CHECKED:
            example = pair.inputs.example(batch, length, padded, seed=batch)
            want = _reference(pair, example.feeds, pair.words(batch, 1), pair.cache is not None)
            got = run(example.feeds)
            state = want.encoder_last_hidden_state.numpy()
            step = f"encode {batch}x{length}"
            real = np.ones(state.shape[:2], bool) if example.mask is None else example.mask.astype(bool)
            yield compare(step, "last_hidden_state", got["last_hidden_state"][real], state[real])
            if pair.cache is not None:
                cross = _tensors(want.past_key_values.cross_attention_cache)
                for name, tensor in zip(traced.outputs[1:], cross, strict=True):
                    yield compare(step, name, got[name].swapaxes(1, 2)[real], tensor.numpy().swapaxes(1, 2)[real])

    return each


def _decoder_check(pair: _Pair, traced: Job) -> Check:
    """Compares with the decoder as its users call it: a first step, and with a cache some more from there on."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, length, padded, lengths in CHECKED:
            example = pair.inputs.example(batch, length, padded, seed=batch)
            words = pair.words(batch, sum(lengths))
            if pair.cache is None:
                yield from _whole(pair, run, example.feeds, words)
            else:
                yield from _steps(pair, pair.cache, traced, run, (example.feeds, words, lengths))

    return each


def _mask(pair: _Pair, feeds: Mapping[str, Any]) -> dict[str, Any]:
    return {"encoder_attention_mask": feeds["attention_mask"]} if pair.masked else {}


def _whole(pair: _Pair, run: Run, feeds: Mapping[str, Any], words: Any) -> Iterator[Compared]:
    want = _reference(pair, feeds, words, False)
    encoded = want.encoder_last_hidden_state.numpy()
    got = run({"input_ids": words, **_mask(pair, feeds), "encoder_hidden_states": encoded})
    yield compare(f"decode {'x'.join(map(str, words.shape))}", "logits", got["logits"], want.logits.numpy())


def _steps(
    pair: _Pair, cache: CacheSizes, traced: Job, run: Run, feed: tuple[Mapping[str, Any], Any, tuple[int, ...]]
) -> Iterator[Compared]:
    feeds, words, lengths = feed
    first = _reference(pair, feeds, words[:, :1], True)
    cross = [tensor.numpy() for tensor in _tensors(first.past_key_values.cross_attention_cache)]
    fixed = {**_mask(pair, feeds), **dict(zip(_names("past_key_values", "encoder", cache), cross, strict=True))}
    own = _names("past_key_values", "decoder", cache)
    kept: Mapping[str, Any] = dict(zip(own, (x.numpy() for x in cache.empty(len(words)).values()), strict=True))
    before, at = None, 0
    for length in lengths:
        here = words[:, at : at + length]
        want = _reference(pair, feeds, here, True, before)
        got = run({"input_ids": here, **fixed, **kept})
        step, at, before = f"decode {len(words)}x{length} after {at}", at + length, want.past_key_values
        yield compare(step, "logits", got["logits"], want.logits.numpy())
        for name, tensor in zip(traced.outputs[1:], _tensors(before.self_attention_cache), strict=True):
            yield compare(step, name, got[name], tensor.numpy())
        kept = {name: got[name.replace("past_key_values", "present")] for name in own}


def _reference(pair: _Pair, feeds: Mapping[str, Any], words: Any, cached: bool, before: Any = None) -> Any:
    import torch

    tensors = _tensors_of({**feeds, "decoder_input_ids": words})
    with torch.no_grad(), quiet():
        return pair.model(**tensors, past_key_values=before, use_cache=cached, return_dict=True)
