"""Pictures: read, turned upright, resized, and made the array that a model takes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qcompiler.data.files.preparation import Preparation
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Feeds

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST: Final = 1 << 27
"""Pixels that a picture may have when it is resized: more than any camera makes."""


def feed_of(path: Path, how: Preparation) -> Feeds:
    """The feed of one picture: `{input: [1, c, h, w]}`, in the layout and type of the input.

    Raises:
        DataError: the file is damaged, or no picture of 8 or 16 bits a colour.
    """
    pixels = np.asarray(_resized(_opened(path, grey=how.channels == 1), how, path))
    pixels = pixels.reshape(*how.size, how.channels)
    if how.colour == "bgr":
        pixels = pixels[..., ::-1]
    array = pixels if how.bytes else _scaled(pixels, how)
    if how.layout == "nchw":
        array = array.transpose(2, 0, 1)
    array = np.ascontiguousarray(array, how.dtype)
    return {how.input: array[None] if how.batched else array}


def _scaled(pixels: Array, how: Preparation) -> Array:
    array = pixels.astype(np.float32) * np.float32(how.scale)
    if how.mean is not None:
        array -= np.asarray(how.mean, np.float32)
    if how.std is not None:
        array /= np.asarray(how.std, np.float32)
    return array


def _opened(path: Path, *, grey: bool) -> Image:
    """As RGB or grey, upright as its EXIF says."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as large ones are an error
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                return _in_bytes(picture, path).convert("L" if grey else "RGB")
    except DataError:
        raise
    except Exception as error:  # whatever the reader of a format raises at a damaged file
        raise DataError(
            f"picture '{path}' cannot be read ({type(error).__name__}: {error}); repair it or take it out."
        ) from error


def _in_bytes(picture: Image, path: Path) -> Image:
    """With 8 bits a colour and no palette, whose transparency would be lost with a warning."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise DataError(
            f"picture '{path}' has numbers of 32 bits (mode {picture.mode}), whose range nothing says: give "
            "--preprocess file.py:function, a function that gets the path of a picture and returns its array"
        )
    return picture.convert("RGBA") if picture.mode in ("P", "PA") else picture


def _resized(picture: Image, how: Preparation, path: Path) -> Image:
    """In the model's size."""
    from PIL import Image

    (height, width), method = how.size, Image.Resampling[how.interpolation.upper()]
    if how.resize == "letterbox":
        ratio = min(height / picture.height, width / picture.width)
        inner = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
        whole = Image.new(picture.mode, (width, height), _grey(picture, how.fill))
        left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
        whole.paste(picture.resize(inner, method), (round(left - 0.1), round(top - 0.1)))
        return whole
    if how.resize == "stretch":
        outer = max(width, round(width / how.keep)), max(height, round(height / how.keep))
    else:
        outer = _covering(picture, max(height, round(height / how.keep)), max(width, round(width / how.keep)))
    if outer[0] * outer[1] > _LARGEST:
        raise DataError(
            f"picture '{path}' is {picture.height}x{picture.width}, and with its shorter side as the model needs it it "
            f"would be {outer[1]}x{outer[0]}; take it out, or do not crop: resize = 'letterbox' in the table "
            "[preprocess]"
        )
    left, top = round((outer[0] - width) / 2.0), round((outer[1] - height) / 2.0)
    return picture.resize(outer, method).crop((left, top, left + width, top + height))


def _covering(picture: Image, height: int, width: int) -> tuple[int, int]:
    """Width and height of the picture where it just covers a rectangle; the longer side is cut to whole pixels."""
    if width * picture.height >= height * picture.width:
        return width, max(height, int(width * picture.height / picture.width))
    return max(width, int(height * picture.width / picture.height)), height


def _grey(picture: Image, value: int) -> Any:
    return value if picture.mode == "L" else (value,) * 3
