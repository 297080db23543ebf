"""Sounds: WAV files, and what `soundfile` reads where it is installed, as the samples of one wave."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.data.files.config import of_config
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Feeds, Inputs
from qcompiler.recipe.tables import PreprocessTable

_FUNCTION = "give --preprocess file.py:function, a function that gets the path of a sound and returns its array"


@dataclass(frozen=True)
class Waves:
    """What is done to every sound: its channels are averaged, and it is cut into windows.

    Attributes:
        input: the input that gets it.
        rate: samples in a second; a file of another rate is refused.
        length: samples of a window; None for the whole sound.
        normalize: each window gets a mean of 0 and a variance of 1.
        axes: of the array: [samples], [batch, samples] or [batch, 1, samples].
        dtype: of the array.
    """

    input: str
    rate: int
    length: int | None
    normalize: bool
    axes: int
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        """For people, in one line."""
        cut = "whole" if self.length is None else f"windows of {self.length} samples"
        return f"mono at {self.rate} Hz, {cut}" + (", mean 0 and variance 1" if self.normalize else ", from -1 to 1")

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "input": self.input,
            "rate": self.rate,
            "length": self.length,
            "normalize": self.normalize,
            "dtype": self.dtype.name,
        }


def waves(table: PreprocessTable, inputs: Inputs) -> Waves:
    """What is done to sounds for a model.

    Raises:
        DataError: the model takes no wave, or nothing says at which rate.
    """
    name, (dtype, shape) = next(iter(inputs.items()))
    wave_like = shape is not None and (len(shape) in (1, 2) or (len(shape) == 3 and shape[1] in (1, None)))
    if len(inputs) != 1 or dtype is None or dtype.kind != "f" or shape is None or not wave_like:
        listed = ", ".join(f"'{one}'" for one in inputs)
        raise DataError(
            f"sounds can be read for models with one float input [batch, samples], and this one takes {listed} of "
            f"another kind (spectra, or several inputs): {_FUNCTION}"
        )
    known = of_config(Path(table.method)) if table.method and table.method.endswith(".json") else {}
    rate = table.rate or known.get("rate")
    if rate is None:
        raise DataError(
            "nothing says at which rate the model hears: give --preprocess with the model's preprocessor_config.json, "
            f"or rate = 16000 in the table [preprocess] of a recipe; or {_FUNCTION}"
        )
    length = shape[-1] if isinstance(shape[-1], int) else None
    normalize = bool(known.get("normalize")) if table.normalize is None else table.normalize
    return Waves(name, int(rate), length, normalize, len(shape), dtype)


def feeds_of(path: Path, how: Waves) -> Iterator[Feeds]:
    """The windows of one sound; one that is shorter is filled up with silence, a last one that is not full left out.

    Raises:
        DataError: the file is damaged, empty, of a form that cannot be read, or of another rate.
    """
    sound, rate = _read(path)
    if rate != how.rate:
        raise DataError(
            f"sound '{path}' has {rate} samples in a second, the model takes {how.rate}: resample it, such as with "
            f"ffmpeg -i {path.name} -ar {how.rate} out.wav, or {_FUNCTION}"
        )
    if not sound.size:
        raise DataError(f"sound '{path}' is empty; take it out of the folder.")
    size = how.length or len(sound)
    for at in range(0, max(len(sound) - size, 0) + 1, size):
        window = sound[at : at + size]
        if how.normalize:
            window = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
        window = np.pad(window, (0, size - len(window))).astype(how.dtype)
        yield {how.input: window.reshape(*(1,) * (how.axes - 1), size)}


def _read(path: Path) -> tuple[Array, int]:
    """float64 [samples] from -1 to 1, and samples in a second."""
    plain = _wave(path) if path.suffix.lower() == ".wav" else None
    if plain is not None:
        return plain
    if importlib.util.find_spec("soundfile") is None:
        raise DataError(
            f"sound '{path}' is no WAV of whole numbers, and soundfile, which reads others, is not installed: pip "
            f"install soundfile, or ffmpeg -i {path.name} -c:a pcm_s16le out.wav"
        )
    import soundfile

    try:
        found, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return found.mean(axis=1), int(rate)


def _wave(path: Path) -> tuple[Array, int] | None:
    """A WAV of whole numbers; None where it holds something else."""
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except wave.Error as error:
        if "unknown format" in str(error):
            return None
        raise _damaged(path, error) from error
    except (OSError, EOFError) as error:
        raise _damaged(path, error) from error
    data = data[: len(data) - len(data) % (width * channels)]
    if width == 1:
        found = (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    elif width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        found = wide.reshape(-1).view("<i4").astype(np.float64) / 2**31
    else:
        found = np.frombuffer(data, f"<i{width}").astype(np.float64) / 2 ** (8 * width - 1)
    return found.reshape(-1, channels).mean(axis=1), rate


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"sound '{path}' cannot be read ({type(error).__name__}: {error}); repair it or take it out of the folder."
    )
