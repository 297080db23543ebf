"""Decoders: how they are called with and without a cache, and how their export is held against them.

The names are those of the ecosystem: `input_ids`, `attention_mask` and `position_ids` in, `logits` out, with a cache
`past_key_values.N.key` / `.value` in and `present.N.key` / `.value` out. Every layer keeps all positions, also those
with a sliding window, whose mask hides the older ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare, token_ids
from qcompiler.frontends.examples import left_out
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import Job, Tensors, quiet

BATCH, SEQUENCE, PAST = 2, 3, 5
TOTAL = "past + sequence"
WIDEST_WINDOW = 1024  # sliding windows up to here are filled by the check


@dataclass(frozen=True)
class CacheSizes:
    """Heads and widths of the keys and values of each layer: (heads, width of a key, width of a value)."""

    layers: tuple[tuple[int, int, int], ...]

    def names(self, prefix: str) -> list[str]:
        """Names of all keys and values in order."""
        return [f"{prefix}.{index}.{part}" for index in range(len(self.layers)) for part in ("key", "value")]

    def empty(self, batch: int, length: int = 0) -> dict[str, Any]:
        """Keys and values of so many positions, zeros."""
        import torch

        sizes = [(heads, width) for heads, key, value in self.layers for width in (key, value)]
        return {
            name: torch.zeros(batch, heads, length, width)
            for name, (heads, width) in zip(self.names("past_key_values"), sizes, strict=True)
        }


def cache_of(model: Any, label: str) -> CacheSizes:
    """What the model keeps, found by running it on two tokens.

    Raises:
        ModelError: it does not keep one key and one value for each position in each layer.
    """
    import torch

    with torch.no_grad(), quiet():
        cache = getattr(model(input_ids=torch.ones(1, 2, dtype=torch.int64), use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", ())
    keys: list[tuple[Any, Any]] = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    if not keys or any(k is None or v is None or k.dim() != 4 or k.shape[2] != 2 for k, v in keys):
        raise ModelError(
            f"{label} ({type(model).__name__}) does not keep a key and a value for each position in each layer, as "
            "state space models, shared caches and some hybrids do not: export it without the cache (--no-past)."
        )
    return CacheSizes(tuple((int(k.shape[1]), int(k.shape[3]), int(v.shape[3])) for k, v in keys))


def kind_of(loaded: LoadedModule, past: bool | None) -> ModelKind:
    """One graph, with the cache where the model keeps one and nobody asked for none.

    Raises:
        ModelError: a cache is asked for, and the model does not keep one key and one value for each position.
    """
    model, label = loaded.module, loaded.name
    cache = kept_of(model, label, past)
    note = (
        f"{label} ({type(model).__name__}) keeps no key and value for each position in each layer, as state space "
        "models and shared caches do not: exported without a cache, it computes whole texts"
    )
    notes = (*((note,) if cache is None and past is not False else ()), *left_out(loaded, ("input_ids",)))
    made = job(model, cache, label)
    name = "decoder" if cache is None else "decoder with cache"
    part = ModelPart("", made, check(model, made, cache, loaded.tokenizer), torch_first=True)
    return ModelKind(name, (part,), notes=notes)


def kept_of(model: Any, label: str, past: bool | None) -> CacheSizes | None:
    """What the graph keeps: nothing where that is asked for, or where nobody asked and the model does not keep it.

    Raises:
        ModelError: a cache is asked for, and the model does not keep one key and one value for each position.
    """
    if past is False:
        return None
    try:
        return cache_of(model, label)
    except ModelError:
        if past:
            raise
        return None


def job(model: Any, cache: CacheSizes | None, label: str, *, embeds: bool = False) -> Job:
    """How the decoder is traced; without a cache if there is None; with `embeds` it reads embeddings and no tokens."""
    import torch

    past = PAST if cache is not None else 0
    known = inspect.signature(model.forward).parameters
    ids = torch.ones(BATCH, SEQUENCE, dtype=torch.int64)
    first = "inputs_embeds" if embeds else "input_ids"
    inputs: dict[str, Any] = {first: embedded(model, ids) if embeds else ids}
    axes: dict[str, dict[int, str]] = {first: {0: "batch", 1: "sequence"}}
    if "attention_mask" in known:
        inputs["attention_mask"] = torch.ones(BATCH, past + SEQUENCE, dtype=torch.int64)
        axes["attention_mask"] = {0: "batch", 1: TOTAL if past else "sequence"}
    if "position_ids" in known:
        inputs["position_ids"] = torch.arange(past, past + SEQUENCE).repeat(BATCH, 1)
        axes["position_ids"] = {0: "batch", 1: "sequence"}
    plain = tuple(inputs)
    outputs = ["logits"]
    if cache is not None:
        kept = cache.empty(BATCH, past)
        inputs.update(kept)
        axes.update({name: {0: "batch", 2: "past"} for name in kept})
        outputs += cache.names("present")

    def forward(*tensors: Any) -> Any:
        options = dict(zip(plain, tensors, strict=False))
        if cache is None:
            return (model(**options, use_cache=False, return_dict=True).logits,)
        out = model(**options, past_key_values=cache_with(tensors[len(plain) :]), use_cache=True, return_dict=True)
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))

    return Job(forward, model, inputs, axes, outputs, label)


def cache_with(tensors: Any) -> Any:
    """transformers' cache with these keys and values, whose sizes are never asked for by value."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc] # transformers is not typed here
        def get_seq_length(self, *_: Any) -> Any:
            return self.keys.shape[-2]  # the original asks whether there is anything, which would fix the answer

    cache = DynamicCache()
    cache.layers = []
    for key, value in zip(tensors[::2], tensors[1::2], strict=True):
        layer = Layer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def embedded(model: Any, ids: Any) -> Any:
    """What the model's own embedding makes of token ids."""
    import torch

    with torch.no_grad(), quiet():
        return model.get_input_embeddings()(ids)


def check(model: Any, traced: Job, cache: CacheSizes | None, tokenizer: Any) -> Check:
    """Compares with the model as its users call it: with its own attention, masks, experts and cache.

    With a cache: prefill of three sequences, one of them padded on the left, three decode steps and a chunk; then one
    sequence from a single token on; then one that is longer than the sliding window, if there is one of moderate size.
    Each step goes on from the cache that the step before returned.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 1 << 30
    window = getattr(config, "sliding_window", None) or 0
    runs: list[tuple[int, tuple[int, ...], int]] = (
        [(3, (7, 1, 1, 1, 4), 2), (1, (1, 1, 5), 0)]
        if cache is not None
        else [(3, (7,), 2), (1, (1,), 0), (2, (14,), 0)]
    )
    if 0 < window <= WIDEST_WINDOW:
        runs.append((1, (window + 3, 1) if cache is not None else (window + 3,), 0))
    runs = [(batch, kept, padded) for batch, lengths, padded in runs if (kept := tuple(_fitting(lengths, limit)))]

    def each(run: Run) -> Iterator[Compared]:
        longest = max(sum(lengths) for _, lengths, _ in runs)
        ids, _ = token_ids(tokenizer, config.vocab_size, 3 * longest)
        walks: list[list[_Step]] = []
        for batch, lengths, padded in runs:
            rows = np.asarray(ids[: batch * sum(lengths)], np.int64).reshape(batch, -1)
            walks.append(list(_answers(model, traced, cache, rows, lengths, padded)))
        for walk in walks:  # torch is done by now: it may let go of its weights when the graph is opened
            yield from _compared(walk, cache, run)

    return each


@dataclass(frozen=True)
class _Step:
    """What torch answers to one step of a walk.

    Attributes:
        name: such as "decode 3x1 after 7".
        feeds: what it read, but for the cache.
        mask: which tokens are no padding, of all until now.
        logits: its answer.
        kept: keys and values of each layer behind it.
    """

    name: str
    feeds: Mapping[str, Any]
    mask: Any
    logits: Any
    kept: Sequence[tuple[Any, Any]]


def _fitting(lengths: tuple[int, ...], limit: int) -> Iterator[int]:
    used = 0
    for length in lengths:
        if used + length <= limit:
            used += length
            yield length


def _answers(
    model: Any, traced: Job, cache: CacheSizes | None, rows: Any, lengths: tuple[int, ...], padded: int
) -> Iterator[_Step]:
    """One batch of sequences, step by step; the first sequence begins with so many padding tokens."""
    import torch

    batch, mask = len(rows), np.ones_like(rows)
    mask[0, :padded] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    before: Any = None
    at = 0
    for length in lengths:
        here = slice(at, at + length)
        feeds = {"input_ids": rows[:, here], "attention_mask": mask[:, : here.stop], "position_ids": positions[:, here]}
        asked = {name: value for name, value in feeds.items() if name in traced.inputs or name == "input_ids"}
        with torch.no_grad(), quiet():
            want = model(**_torch(asked), past_key_values=before, use_cache=cache is not None, return_dict=True)
        if "inputs_embeds" in traced.inputs:
            asked["inputs_embeds"] = embedded(model, torch.from_numpy(asked.pop("input_ids"))).numpy()
        name = f"{'decode' if at else 'prefill'} {batch}x{length}" + (f" after {at}" if at else "")
        before, at = want.past_key_values if cache is not None else None, here.stop
        kept = [(layer.keys, layer.values) for layer in before.layers] if before is not None else []
        yield _Step(name, asked, mask[:, :at].astype(bool), want.logits.numpy(), kept)
        if cache is None:
            return


def _compared(walk: Sequence[_Step], cache: CacheSizes | None, run: Run) -> Iterator[Compared]:
    """The graph on the same steps, each with the cache that the graph itself returned."""
    rows = len(walk[0].mask) if walk else 0
    kept: Mapping[str, Any] = {} if cache is None else {k: v.numpy() for k, v in cache.empty(rows).items()}
    for step in walk:
        got = run({**step.feeds, **kept})
        real = step.mask[:, step.mask.shape[1] - step.logits.shape[1] :]
        yield compare(step.name, "logits", got["logits"][real], step.logits[real])
        if cache is not None:
            yield from _caches(step, got)
            kept = {name.replace("present", "past_key_values"): got[name] for name in cache.names("present")}


def _caches(step: _Step, got: Mapping[str, Any]) -> Iterator[Compared]:
    """The positions that are no padding and that transformers still keeps: not those that left a sliding window."""
    for index, layer in enumerate(step.kept):
        for part, tensor in zip(("key", "value"), layer, strict=True):
            name, want = f"present.{index}.{part}", tensor.numpy()
            if got[name].shape[2] != step.mask.shape[1]:
                yield Compared(step.name, name, float("inf"))
                continue
            seen = step.mask[:, step.mask.shape[1] - want.shape[2] :]
            ours = got[name][:, :, step.mask.shape[1] - want.shape[2] :]
            yield compare(step.name, name, ours.swapaxes(1, 2)[seen], want.swapaxes(1, 2)[seen])


def _torch(feeds: Tensors) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
