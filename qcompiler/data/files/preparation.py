"""How a picture becomes what the model reads: a method by name, a configuration of Hugging Face, keys of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from qcompiler.data.files.config import of_config
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.signature import Inputs, Shape
from qcompiler.recipe.tables import PreprocessTable

_BYTE: Final = 1 / 255
METHODS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "imagenet": {
            "resize": "crop",
            "keep": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
        "yolo": {"resize": "letterbox", "interpolation": "bilinear", "fill": 114},
        "clip": {
            "resize": "crop",
            "keep": 1.0,
            "interpolation": "bicubic",
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
        },
        "plain": {"resize": "stretch", "interpolation": "bilinear"},
    }
)
WAYS: Final = (
    "--preprocess imagenet (the middle, mean and deviation of torchvision), yolo (letterbox, 0 to 1), clip, plain (all "
    "of it stretched, 0 to 1), the model's preprocessor_config.json, or file.py:function, a function that gets the "
    "path of a file and returns its array"
)


@dataclass(frozen=True)
class Preparation:
    """What is done to every picture, in this order.

    Attributes:
        input: the input that gets it.
        size: height and width in pixels.
        resize: `crop`, `letterbox` or `stretch`.
        keep: share of the resized picture's shorter side that its middle is taken of.
        interpolation: how it is resized; smaller pictures are averaged over all their pixels (antialias).
        fill: grey around a letterboxed picture, 0..255.
        scale: bytes are multiplied by it.
        mean: subtracted then, for each colour; None for nothing.
        std: divided by then; None for nothing.
        colour: `rgb` or `bgr`.
        layout: `nchw` or `nhwc`.
        channels: 3, or 1 for grey.
        dtype: of the array.
        batched: the model has an axis for the batch.
    """

    input: str
    size: tuple[int, int]
    resize: str
    keep: float
    interpolation: str
    fill: int
    scale: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    colour: str
    layout: str
    channels: int
    dtype: np.dtype[Any]
    batched: bool

    @property
    def bytes(self) -> bool:
        """The model reads pixels as they are."""
        return self.dtype == np.uint8

    def __str__(self) -> str:
        """For people, in one line."""
        how = {"crop": f"the middle {self.keep:g} of", "letterbox": f"letterboxed with {self.fill} to"}
        parts = [f"{how.get(self.resize, 'stretched to')} {self.size[0]}x{self.size[1]} ({self.interpolation})"]
        if self.resize == "crop":
            parts = [f"the middle {self.keep:g} at {self.size[0]}x{self.size[1]} ({self.interpolation})"]
        parts.append("grey" if self.channels == 1 else self.colour.upper())
        parts.append("bytes" if self.bytes else f"times {self.scale:.6g}")
        parts += [f"less {_numbers(self.mean)}"] if self.mean and not self.bytes else []
        parts += [f"over {_numbers(self.std)}"] if self.std and not self.bytes else []
        return ", ".join([*parts, self.layout.upper() if self.batched else self.layout[1:].upper()])

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        found = dataclasses.asdict(self)
        return {**found, "dtype": self.dtype.name}


def preparation(table: PreprocessTable, inputs: Inputs) -> Preparation:
    """What is done to pictures for a model.

    Args:
        table: what is asked for; its method is no function.
        inputs: of the model; one of them takes a picture.

    Raises:
        DataError: the model takes no picture, or not only one; a configuration cannot be used; its size or layout is
            not known.
        UsageError: keys that do not fit the model.
    """
    name, dtype, shape = _picture_input(inputs)
    layout, channels, own = _read(name, shape, table.layout)
    known = dict(METHODS.get(table.method or "plain") or of_config(Path(str(table.method))))
    if "rate" in known:
        raise DataError(f"'{table.method}' prepares sounds, and the data is pictures.")
    given = {key.name: getattr(table, key.name) for key in dataclasses.fields(table)}
    if table.colour == "bgr":  # a method names the colours in the order red, green, blue
        known |= {key: tuple(reversed(known[key])) for key in ("mean", "std") if known.get(key)}
    known |= {key: value for key, value in given.items() if value is not None and key not in ("method", "layout")}
    size = _size(name, own, known.get("size"), table)
    if known.get("resize") is None:
        raise DataError(
            f"'{table.method}' keeps the proportions of every picture, and input '{name}' takes {size[0]}x{size[1]}: "
            "say how they are made to fit with resize = 'crop', 'letterbox' or 'stretch' in the table [preprocess]"
        )
    whole = Preparation(
        input=name,
        size=size,
        resize=known["resize"],
        keep=float(known.get("keep") or 1.0),
        interpolation=known.get("interpolation") or "bilinear",
        fill=min(int(known.get("fill") or 0), 255),
        scale=float(known.get("scale", _BYTE)),
        mean=_colours(known.get("mean"), channels, "mean"),
        std=_colours(known.get("std"), channels, "std"),
        colour=known.get("colour") or "rgb",
        layout=layout,
        channels=channels,
        dtype=dtype,
        batched=len(shape or ()) == 4,
    )
    if whole.bytes and (table.mean or table.std or table.scale is not None):
        raise UsageError(
            f"input '{name}' takes bytes, so its pictures cannot be scaled: leave mean, std and scale out of "
            "[preprocess]"
        )
    return whole


def _picture_input(inputs: Inputs) -> tuple[str, np.dtype[Any], Shape]:
    """The one input, which takes a picture."""
    name, (dtype, shape) = next(iter(inputs.items()))
    floats = dtype is not None and (dtype.kind == "f" or dtype.name == "bfloat16")
    if len(inputs) != 1 or dtype is None or not (floats or dtype == np.uint8) or (shape and len(shape) not in (3, 4)):
        listed = ", ".join(f"'{one}' {_shape(size)}" for one, (_, size) in inputs.items())
        raise DataError(
            f"pictures can be read for models with one input of pictures, and this one takes {listed}: give "
            "--preprocess file.py:function, a function that gets the path of a picture and returns a dict with an "
            "array for each input"
        )
    return name, dtype, shape


def _read(name: str, shape: Shape, asked: str | None) -> tuple[str, int, tuple[int | None, int | None]]:
    """Layout, number of colours, and the sizes that the model fixes."""
    if shape is None:
        sizes: tuple[int | None, ...] = (None, None, None)
    else:
        sizes = tuple(size if isinstance(size, int) else None for size in shape[-3:])
    first, last = sizes[0] in (1, 3), sizes[2] in (1, 3)
    if asked is None and first == last:
        raise DataError(
            f"input '{name}' is {_shape(shape)}, which does not say where its colours are: give layout = 'nchw' or "
            "'nhwc' in the table [preprocess]"
        )
    layout = asked or ("nchw" if first else "nhwc")
    channels = sizes[0] if layout == "nchw" else sizes[2]
    if channels not in (1, 3, None):
        raise DataError(
            f"input '{name}' is {_shape(shape)}: {channels} colours are not those of a picture; give --preprocess "
            "file.py:function, a function that gets the path of a file and returns its array"
        )
    return layout, channels or 3, (sizes[1], sizes[2]) if layout == "nchw" else (sizes[0], sizes[1])


def _size(
    name: str, own: tuple[int | None, int | None], asked: tuple[int, int] | None, table: PreprocessTable
) -> tuple[int, int]:
    height, width = own
    if table.size is not None and any(fixed not in (None, given) for fixed, given in zip(own, table.size, strict=True)):
        raise UsageError(
            f"--picture-size {table.size[0]}x{table.size[1]} does not fit input '{name}', which takes "
            f"{'x'.join('?' if one is None else str(one) for one in own)}"
        )
    if height is not None and width is not None:
        return height, width
    if asked is None:
        raise DataError(
            f"input '{name}' takes pictures of any size, and nothing says which: give --picture-size, such as 640 or "
            "480x640"
        )
    return height or asked[0], width or asked[1]


def _colours(values: tuple[float, ...] | None, channels: int, key: str) -> tuple[float, ...] | None:
    if values is None or len(values) == channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * channels
    raise DataError(
        f"{key} has {len(values)} numbers, and the model takes {channels} "
        f"colour{'s' * (channels != 1)}: give as many as '{key}' in the table [preprocess]"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{one:g}" for one in values) + "]"


def _shape(shape: Shape) -> str:
    return "of any shape" if shape is None else f"[{', '.join('?' if one is None else str(one) for one in shape)}]"
