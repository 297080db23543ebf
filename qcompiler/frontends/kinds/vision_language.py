"""Vision-language models such as LLaVA and InternVL: pictures to features, tokens to embeddings, decoder.

`vision` is the tower and the projector: from pixel_values to image_features, as wide as the decoder. `embed` looks
token ids up. Whoever runs them puts the features in the places of the image tokens; `decoder` reads the result as
inputs_embeds, and is a decoder like any other from there on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare
from qcompiler.frontends.examples import Inputs, inputs_of, tokens
from qcompiler.frontends.kinds import decoder
from qcompiler.frontends.kinds.decoder import CacheSizes
from qcompiler.frontends.kinds.encoder import check, job_of
from qcompiler.frontends.kinds.parts import Link, ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import FUNCTION, Job, quiet, reason

FEATURES, EMBEDS = "image_features", "inputs_embeds"


def is_vision_language(model: Any) -> bool:
    """Whether it generates text and has pictures put between its tokens."""
    return hasattr(model, "get_image_features") and image_token(model.config) is not None


def image_token(config: Any) -> int | None:
    """The token in whose place a picture's features go."""
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(one) for one in found if one is not None), None)


def kind_of(loaded: LoadedModule, past: bool | None) -> ModelKind:
    """Three graphs: vision, embed, decoder.

    Raises:
        ModelError: its pictures cannot be encoded by themselves.
    """
    import torch

    model, label = loaded.module, loaded.name
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{label} ({type(model).__name__}) lets the tokens of a picture see each other in its first step alone "
            "(token_type_ids), which a decoder that serves all steps does not: export its parts by themselves, such as "
            f"model.get_image_features and model.language_model. {FUNCTION}"
        )
    pictures = inputs_of(loaded, "pixel_values")
    if isinstance(_raw(model, torch.from_numpy(pictures.example(1, 1).feeds["pixel_values"])), list | tuple):
        pictures = pictures.one_by_one()  # a list of one entry for each picture has a fixed length in a graph

    def features(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {FEATURES: _features(model, tensors["pixel_values"])}

    vision = job_of(loaded, pictures, features, f"the vision tower of {label}")
    ids = torch.ones(decoder.BATCH, decoder.SEQUENCE, dtype=torch.int64)
    embedding = model.get_input_embeddings()
    axes = {"input_ids": {0: "batch", 1: "sequence"}}
    embed = Job(
        lambda one: (embedding(one),), embedding, {"input_ids": ids}, axes, [EMBEDS], f"the embedding of {label}"
    )
    cache = decoder.kept_of(model, label, past)
    text = decoder.job(model, cache, f"the decoder of {label}", embeds=True)
    parts = (
        ModelPart("vision", vision, check(loaded, pictures, features)),
        ModelPart("embed", embed, _embedding_check(loaded)),
        ModelPart("decoder", text, _check(loaded, pictures, text, cache)),
    )
    links = (Link("embed", EMBEDS, "decoder", EMBEDS), Link("vision", FEATURES, "decoder", EMBEDS))
    token = image_token(model.config)
    note = (
        f"image_features go in the places of token {token} in inputs_embeds, row after row, before the decoder reads "
        "them: that step is outside of the graphs"
    )
    return ModelKind("vision-language", parts, links, (("image_token", float(token or 0)),), (note,))


def _raw(model: Any, pixels: Any) -> Any:
    """What the model makes of pictures: a tensor, or a list of one for each."""
    import torch

    try:
        with torch.no_grad(), quiet():
            found = model.get_image_features(pixel_values=pixels)
    except Exception as error:  # transformers raises whatever its code meets
        raise ModelError(
            f"pictures of {type(model).__name__} cannot be encoded from pixel_values {tuple(pixels.shape)} alone, as "
            f"those that are cut into tiles by their size cannot: {reason(error)}. Fix the sizes in a function of your "
            f"own. {FUNCTION}"
        ) from error
    return getattr(found, "pooler_output", found)


def _features(model: Any, pixels: Any) -> Any:
    """Features of pictures as one tensor, [pictures, tokens, width] or [tokens, width]."""
    import torch

    found = _raw(model, pixels)
    if isinstance(found, list | tuple):
        found = torch.cat(list(found))
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"{type(model).__name__} returns no features of a picture that go between tokens. {FUNCTION}")
    return found


def _embedding_check(loaded: LoadedModule) -> Check:
    def each(run: Run) -> Iterator[Compared]:
        import torch

        for batch, length in ((3, 7), (1, 1)):
            ids, _ = tokens(loaded, batch, length, 0)
            want = decoder.embedded(loaded.module, torch.from_numpy(ids)).numpy()
            yield compare(f"embed {batch}x{length}", EMBEDS, run({"input_ids": ids})[EMBEDS], want)

    return each


def _check(loaded: LoadedModule, pictures: Inputs, traced: Job, cache: CacheSizes | None) -> Check:
    """Compares as a decoder of text, and once with a picture in the text, against the whole model."""
    text = decoder.check(loaded.module, traced, cache, loaded.tokenizer)

    def each(run: Run) -> Iterator[Compared]:
        yield from text(run)
        yield from _with_picture(loaded, pictures, traced, cache, run)

    return each


def _with_picture(
    loaded: LoadedModule, pictures: Inputs, traced: Job, cache: CacheSizes | None, run: Run
) -> Iterator[Compared]:
    import torch

    model = loaded.module
    pixels = torch.from_numpy(pictures.example(1, 1).feeds["pixel_values"])
    with torch.no_grad(), quiet():
        features = _features(model, pixels)
    features = features.reshape(-1, features.shape[-1])
    ids, _ = tokens(loaded, 1, len(features) + 4, 0)
    ids = np.where(ids == image_token(model.config), 0, ids)
    ids[:, 2 : 2 + len(features)] = image_token(model.config)
    given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones_like(torch.from_numpy(ids))}
    with torch.no_grad(), quiet():
        want = model(**given, pixel_values=pixels, use_cache=False, return_dict=True).logits.numpy()
    embeds = decoder.embedded(model, torch.from_numpy(ids)).clone()
    embeds[:, 2 : 2 + len(features)] = features
    feeds = {EMBEDS: embeds.numpy(), "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    feeds = {name: value for name, value in feeds.items() if name in traced.inputs}
    kept = {} if cache is None else {name: value.numpy() for name, value in cache.empty(1).items()}
    yield compare("a picture in the text, against the whole model", "logits", run({**feeds, **kept})["logits"], want)
