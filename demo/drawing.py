"""Text lines to read: real sentences of newspaper editorials set in real fonts, with uneven light, blur and noise.

Line `i` is the same on every machine: all randomness is seeded with `i`. Even lines and odd lines share no article, so
one half can calibrate and the other judge.
"""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from demo import packages

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
)
_EDITORIALS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    "!hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
)


def line(index: int) -> tuple[Image.Image, str]:
    """RGB image of one line of text, 24 to 58 pixels high, and the text."""
    random = np.random.default_rng([index, 48])
    text = _texts(index % 2)[index // 2]
    font = ImageFont.truetype(str(_font(FONTS[int(random.integers(len(FONTS)))])), int(random.integers(16, 34)))
    x0, y0, x1, y1 = font.getbbox(text)
    border = int(random.integers(4, 12))
    size = (int(x1 - x0) + 2 * border, int(y1 - y0) + 2 * border)

    dark = random.random() < 0.3
    image = Image.fromarray(_ground(size, 40.0 if dark else 215.0, random))
    ink = int(random.integers(200, 255)) if dark else int(random.integers(0, 60))
    colour = (ink, max(0, ink - int(random.integers(0, 30))), ink)
    ImageDraw.Draw(image).text((border - x0, border - y0), text, font=font, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))
    noisy = np.asarray(image, np.float32) + random.normal(0, random.uniform(0, 24), (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), text


def page(index: int, width: int = 640, height: int = 480) -> tuple[Image.Image, list[Box]]:
    """A page with text lines of the same half as `index`, and the box of each line."""
    random = np.random.default_rng([index, 480])
    image = Image.fromarray(_ground((width, height), float(random.uniform(90, 230)), random))
    boxes = []
    y = int(random.integers(8, 24))
    while y < height - 64:
        strip, _ = line(2 * int(random.integers(400)) + index % 2)
        if strip.width > width - 16:
            continue
        x = int(random.integers(4, width - strip.width - 4))
        image.paste(strip, (x, y))
        boxes.append((x + 4, y + 4, x + strip.width - 4, y + strip.height - 4))
        y += strip.height + int(random.integers(14, 60))
    return image, boxes


@cache
def _texts(half: int) -> list[str]:
    """Lines of 12 to 32 ASCII characters out of every other article, in a fixed shuffled order."""
    path = packages.member("vaderSentiment", _EDITORIALS)
    rows = [row.split("\t") for row in path.read_text(encoding="utf8", errors="replace").splitlines()]
    articles = [(int(row[0].lstrip("\ufeff").partition("_")[0]), row[2].strip()) for row in rows if len(row) == 3]
    wrapped = [textwrap.wrap(text, 32)[:-1] or [text] for number, text in articles if number % 2 == half]
    fitting = {text for lines in wrapped for text in lines if 12 <= len(text) <= 32 and text.isascii()}
    found = sorted(text for text in fitting if "''" not in text)  # a typist's quotation mark: no font has it as one
    return [found[i] for i in np.random.default_rng(half).permutation(len(found))]


@cache
def _font(name: str) -> Path:
    """A font that matplotlib brings along; matplotlib itself is not imported."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise packages.FetchError("the fonts come with matplotlib, which is not installed: pip install matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"


def _ground(size: tuple[int, int], level: float, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Paper under uneven light: uint8 [height, width, 3] around `level`."""
    width, height = size
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    slope = random.uniform(-25, 25, 2)
    wave = random.uniform(0, 12) * np.sin(random.uniform(1, 9) * x + random.uniform(1, 9) * y)
    light = (level + slope[0] * x + slope[1] * y + wave)[..., None] + random.uniform(-8, 8, 3)
    return np.asarray(light.clip(0, 255), np.uint8)
