"""Example inputs of transformers' models by the names of their parameters: tokens, pictures, sound.

Which inputs a model reads, its class says; which sizes they can have, its configuration and the folder's preprocessor.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import token_ids
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import FUNCTION

USUAL_SIZE = 224  # of a picture, where nobody says it
FRAMES = 20  # of a sound: steps of the encoder in the example that is traced
_SENSES = ("pixel_values", "pixel_values_videos", "input_features", "input_values", "bbox", "visual_embeds")
Feeds = dict[str, Any]
"""numpy arrays by name."""


@dataclass(frozen=True)
class Example:
    """What is fed to a model in one run.

    Attributes:
        feeds: arrays by name.
        mask: 1 where a token is no padding, 0 elsewhere; None where nothing is padded.
    """

    feeds: Feeds
    mask: Any = None


@dataclass(frozen=True)
class Inputs:
    """What a model reads.

    Attributes:
        main: what it reads above all: "input_ids", "pixel_values", "input_values", "input_features".
        names: of its parameters.
        axes: their free dimensions.
        notes: what was assumed.
        loaded: the model.
        batch: the number of rows where it is fixed; None where it is free.
    """

    main: str
    names: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]
    notes: tuple[str, ...]
    loaded: LoadedModule
    batch: int | None = None

    def one_by_one(self) -> Inputs:
        """The same where each call takes one row."""
        axes = {name: {axis: one for axis, one in free.items() if axis} for name, free in self.axes.items()}
        return replace(self, axes=axes, batch=1)

    def example(self, batch: int, length: int, padded: int = 0, seed: int = 0) -> Example:
        """A sample of so many rows: `length` tokens or steps of sound, the last ones of the first row padded."""
        batch = self.batch or batch
        feeds: Feeds = {}
        mask = None
        for name in self.names:
            if name == "input_ids":
                ids, mask = tokens(self.loaded, batch, length, padded)
                feeds |= {"input_ids": ids, "attention_mask": mask}
            elif name == "token_type_ids":
                feeds[name] = np.zeros((batch, length), np.int64)
            elif name not in feeds:  # the mask of tokens comes with them
                feeds[name] = _made(self, name, batch, length, seed)
        kept = {name: feeds[name] for name in self.names}
        return Example(kept, mask if "attention_mask" in self.names else None)


def inputs_of(loaded: LoadedModule, main: str = "") -> Inputs:
    """What the model of a folder reads.

    Args:
        loaded: the model.
        main: what it is to read above all, of several that it can; unset: what its class says.

    Raises:
        ModelError: its main input is none that is known.
    """
    known = inspect.signature(loaded.module.forward).parameters
    asked, main = main, main or getattr(loaded.module, "main_input_name", "input_ids")
    if main not in known:
        main = next(
            (one for one in ("input_ids", "pixel_values", "input_values", "input_features") if one in known), main
        )
    names = (main, *_beside(loaded, main, known))
    notes = [*(() if asked else left_out(loaded, names)), *_notes(loaded, names)]
    return Inputs(main, names, {name: _axes(loaded, main) for name in names}, tuple(notes), loaded)


def _beside(loaded: LoadedModule, main: str, known: Collection[str]) -> Iterator[str]:
    """What is read beside the main input: the mask, and the types of tokens if the tokenizer makes them."""
    if main == "input_ids":
        wanted = getattr(loaded.tokenizer, "model_input_names", None) or ["input_ids", "attention_mask"]
        yield from (name for name in ("attention_mask", "token_type_ids") if name in wanted and name in known)
    elif main in ("input_values", "input_features"):
        if loaded.preprocessor.get("return_attention_mask") and "attention_mask" in known and _free_time(loaded, main):
            yield "attention_mask"
    elif main not in ("pixel_values", "pixel_values_videos"):
        raise ModelError(
            f"{loaded.name} ({type(loaded.module).__name__}) reads '{main}', which is not known: known are token ids, "
            f"pictures and sound. {FUNCTION}"
        )


def _axes(loaded: LoadedModule, main: str) -> dict[int, str]:
    if main in ("input_values", "input_features"):
        return {0: "batch", 1: "time"} if _free_time(loaded, main) else {0: "batch"}
    return {0: "batch"} if main.startswith("pixel_values") else {0: "batch", 1: "sequence"}


def left_out(loaded: LoadedModule, names: Collection[str]) -> Iterator[str]:
    """A sentence on what the model can read beside these inputs, where that is more than another form of them."""
    known = inspect.signature(loaded.module.forward).parameters
    others = [name for name in _SENSES if name in known and name not in names]
    if others and "inputs_embeds" not in names:
        yield (
            f"{loaded.name} ({type(loaded.module).__name__}) reads {', '.join(others)}, which the graph does not: to "
            "have that too, write a function that returns (module, inputs, axes), and export file.py:function"
        )


def _notes(loaded: LoadedModule, names: tuple[str, ...]) -> Iterator[str]:
    if "pixel_values" in names and not _sized(loaded):
        yield (
            f"nothing in '{loaded.name}' says how large its pictures are: {USUAL_SIZE} x {USUAL_SIZE} is taken. Add a "
            'preprocessor_config.json with "size", or write a function that returns (module, inputs, axes)'
        )


def _made(inputs: Inputs, name: str, batch: int, length: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    if name.startswith("pixel_values"):
        return random.standard_normal((batch, *picture(inputs.loaded))).astype(np.float32)
    shape = _sound(inputs.loaded, inputs.main, length)
    if name == "attention_mask":
        return np.ones((batch, shape[0]), np.int64)
    return (0.5 * random.standard_normal((batch, *shape))).astype(np.float32)


def picture(loaded: LoadedModule) -> tuple[int, ...]:
    """Channels, height and width of a picture; with frames in front for models of videos."""
    config = loaded.module.config
    size = _sized(loaded) or (USUAL_SIZE, USUAL_SIZE)
    parts = (config, *(getattr(config, one, None) for one in ("vision_config", "backbone_config", "encoder")))
    channels = next((n for n in (getattr(one, "num_channels", None) for one in parts) if n), 3)
    frames = (int(config.num_frames),) if isinstance(getattr(config, "num_frames", None), int) else ()
    return (*frames, int(channels), *size)


def _sized(loaded: LoadedModule) -> tuple[int, int] | None:
    """Height and width, as the configuration says, then the preprocessor."""
    config, said = loaded.module.config, loaded.preprocessor
    for part in (config, *(getattr(config, one, None) for one in ("vision_config", "encoder"))):
        size = _height_width(getattr(part, "image_size", None))
        if size:
            return size
    cropped = said.get("crop_size") if said.get("do_center_crop") else None
    for size in (cropped, said.get("size"), getattr(getattr(config, "backbone_config", None), "image_size", None)):
        found = _height_width(size)
        if found:
            return found
    return None


def _height_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if not isinstance(size, Mapping):
        return None
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    short = size.get("shortest_edge")
    return (int(short), int(size.get("longest_edge") or short)) if short else None


def _of_sound(loaded: LoadedModule) -> Any:
    """The configuration of the part that reads sound."""
    config = loaded.module.config
    return getattr(config, "audio_config", None) or getattr(config, "encoder", None) or config


def _free_time(loaded: LoadedModule, name: str) -> bool:
    """Whether a model of sound takes any length: those with learned positions for a whole spectrogram do not."""
    config = _of_sound(loaded)
    fixed = "max_length" if name == "input_values" and not _strides(config) else "max_source_positions"
    return not (getattr(config, "num_mel_bins", None) and getattr(config, fixed, None)) or hasattr(
        config, "input_feat_per_channel"
    )


def _strides(config: Any) -> list[tuple[int, int]]:
    """(kernel, stride) of the convolutions that a model of raw sound begins with."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    return list(zip(kernels, strides, strict=True)) if kernels and strides else []


def _sound(loaded: LoadedModule, name: str, steps: int) -> tuple[int, ...]:
    """Sizes of a sound without the batch, for so many steps of the encoder where it is free.

    Raises:
        ModelError: the configuration does not say them.
    """
    config = _of_sound(loaded)
    mel = getattr(config, "num_mel_bins", None)
    if name == "input_values":
        if _strides(config):
            length = max(1, steps)
            for kernel, stride in reversed(_strides(config)):
                length = (length - 1) * stride + kernel
            return (length,)
        if mel and getattr(config, "max_length", None):
            return int(config.max_length), int(mel)
        channels = getattr(config, "audio_channels", None)
        return (int(channels), 320 * steps) if channels else (400 + 320 * steps,)
    for width in ("feature_projection_input_dim", "input_feat_per_channel"):
        if getattr(config, width, None):
            return 4 * steps, int(getattr(config, width)) * int(getattr(config, "input_channels", 1))
    if mel and getattr(config, "max_source_positions", None):
        return int(mel), 2 * int(config.max_source_positions)
    if mel:
        return 8 * steps, int(mel)
    raise ModelError(
        f"the configuration of {loaded.name} ({type(loaded.module).__name__}) does not say the size of '{name}'. "
        f"{FUNCTION}"
    )


def longest(config: Any) -> int:
    """Most tokens that positions reach to."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None) or 1 << 30
    return max(1, int(found) - 2)  # some count from the padding token's id on


def tokens(loaded: LoadedModule, batch: int, length: int, padded: int) -> tuple[Any, Any]:
    """Ids of a text and their mask, int64 [batch, length]; the first row is padded at its end."""
    whole = loaded.module.config
    config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    ids, _ = token_ids(loaded.tokenizer, config.vocab_size, batch * length)
    rows = np.asarray(ids, np.int64).reshape(batch, length)
    mask = np.ones_like(rows)
    if length > padded > 0:
        mask[0, length - padded :] = 0
    pad = getattr(config, "pad_token_id", None)
    pad = pad[0] if isinstance(pad, list | tuple) else pad
    return np.where(mask, rows, rows if pad is None else pad), mask
