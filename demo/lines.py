"""What a user of qcompiler writes: how to feed the recogniser, and how to judge it.

Named on the command line as `--data demo/lines.py:calibration --metric demo/lines.py:accuracy`. The folders are
written by `demo/run.py`: PNG files named `0000.png`, ..., and `labels.txt` with the text of each, one a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "build" / "demo"
METRIC = "character accuracy on held-out lines"  # how reports call it
HEIGHT, WIDTH, BATCH = 48, 640, 4

Feeds = dict[str, np.ndarray]
Array = np.ndarray[Any, np.dtype[Any]]


def calibration() -> Iterator[Feeds]:
    """Batches of 4 lines that the metric never sees."""
    return (feeds for feeds, _ in _batches(FOLDER / "calibration"))


def accuracy(run: Callable[[Feeds], Sequence[Array]]) -> float:
    """Character accuracy on held-out lines: 1 - edit distance / length."""
    read: list[str] = []
    truth: list[str] = []
    for feeds, texts in _batches(FOLDER / "heldout"):
        (probabilities,) = run(feeds)  # the model has one output
        read += decode(probabilities, characters())
        truth += texts
    return character_accuracy(read, truth)


def pixels(image: Image.Image, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """BGR in -1..1, float32 [3, height, width]: scaled to the height, squeezed if too long, padded with 0."""
    scaled = min(max(8, round(image.width * height / image.height)), width)
    resized = image.convert("RGB").resize((scaled, height), Image.Resampling.BILINEAR)
    bgr = np.asarray(resized, np.float32)[:, :, ::-1] / 127.5 - 1
    return np.pad(bgr.transpose(2, 0, 1), ((0, 0), (0, 0), (0, width - scaled)))


def decode(probabilities: Array, classes: Sequence[str]) -> list[str]:
    """Greedy CTC: the likeliest class of each step, repetitions once, class 0 (blank) dropped, no space at the ends.

    `probabilities` is float [batch, steps, classes].
    """
    best = probabilities.argmax(-1)
    new = np.diff(best, axis=1, prepend=-1) != 0
    rows = zip(best, new & (best != 0), strict=True)
    return ["".join(classes[k] for k in row[keep]).strip() for row, keep in rows]


def character_accuracy(read: Sequence[str], truth: Sequence[str]) -> float:
    """1 - edits / characters over all lines together; 1 is perfect, below 0 is possible."""
    edits = sum(_edits(a, b) for a, b in zip(read, truth, strict=True))
    return 1 - edits / sum(map(len, truth))


@cache
def characters() -> list[str]:
    """What the model's classes stand for; `demo/run.py` takes them from the metadata of the model."""
    return ["", *(FOLDER / "characters.txt").read_text(encoding="utf8").split("\n"), " "]


def _batches(folder: Path) -> Iterator[tuple[Feeds, list[str]]]:
    labels = (folder / "labels.txt").read_text(encoding="utf8").splitlines()
    for start in range(0, len(labels), BATCH):
        texts = labels[start : start + BATCH]
        images = [Image.open(folder / f"{start + i:04}.png") for i in range(len(texts))]
        yield {"x": np.stack([pixels(image) for image in images])}, texts


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
