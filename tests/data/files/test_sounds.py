"""Sounds become waves from -1 to 1."""

from __future__ import annotations

import importlib.util
import sys
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qcompiler.data.files.sounds import feeds_of, waves
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Inputs, Shape
from qcompiler.recipe.tables import PreprocessTable
from tests.data.samples import F32

WAVE = np.array([0.0, 0.5, -0.5, 0.25, -1.0, 0.75], np.float64)


def written(folder: Path, values: Array, *, width: int = 2, rate: int = 16000, name: str = "a.wav") -> Path:
    """`values` are [frames] or [frames, channels]."""
    whole = np.round(values * 2 ** (8 * width - 1)).astype(np.int64)
    whole = np.clip(whole, -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0)
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1 if values.ndim == 1 else values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole.reshape(-1)))
    return folder / name


def read(path: Path, shape: Shape = ("n", "t"), **table: Any) -> list[Array]:
    inputs: Inputs = {"x": (F32, shape)}
    return [feed["x"] for feed in feeds_of(path, waves(PreprocessTable(**{"rate": 16000, **table}), inputs))]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_any_width_are_read(tmp_path: Path, width: int) -> None:
    (found,) = read(written(tmp_path, WAVE, width=width))
    np.testing.assert_allclose(found, WAVE[None].astype(np.float32), atol=2.0 ** (2 - 8 * width))
    assert found.dtype == np.float32


def test_channels_are_averaged(tmp_path: Path) -> None:
    (found,) = read(written(tmp_path, np.stack([WAVE, np.zeros(6)], axis=1)))
    np.testing.assert_allclose(found[0], WAVE / 2, atol=1e-4)


def test_a_sound_is_cut_into_windows_of_the_model_s_length(tmp_path: Path) -> None:
    path = written(tmp_path, WAVE)
    assert [one.shape for one in read(path, ("n", 2))] == [(1, 2)] * 3
    assert [one.shape for one in read(path, (1, 1, 4))] == [(1, 1, 4)]
    (short,) = read(path, (8,))
    assert short.shape == (8,)
    assert not short[6:].any()


def test_a_window_is_normalized_on_request(tmp_path: Path) -> None:
    (found,) = read(written(tmp_path, WAVE), normalize=True)
    assert abs(float(found.mean())) < 1e-6
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)


def test_another_rate_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 8000 samples in a second, the model takes 16000: .*ffmpeg -i a\.wav"):
        read(written(tmp_path, WAVE, rate=8000))


def test_a_rate_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing says at which rate the model hears"):
        read(written(tmp_path, WAVE), rate=None)


@pytest.mark.parametrize("shape", [(1, 80, 3000), (1, 2, 3, 4), None])
def test_models_that_take_no_wave_need_a_function(tmp_path: Path, shape: Shape) -> None:
    with pytest.raises(DataError, match=r"give --preprocess file\.py:function"):
        read(written(tmp_path, WAVE), shape)


def test_what_is_damaged_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFFxx")
    with pytest.raises(DataError, match=r"bad\.wav' cannot be read"):
        read(tmp_path / "bad.wav")
    with pytest.raises(DataError, match="is empty"):
        read(written(tmp_path, WAVE[:0]))


@pytest.fixture
def soundfile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands for the library, which need not be installed."""
    module = ModuleType("soundfile")
    monkeypatch.setitem(sys.modules, "soundfile", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return module


def test_other_forms_are_read_by_soundfile(tmp_path: Path, soundfile: ModuleType) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    soundfile.read = lambda path, dtype, always_2d: (WAVE[:, None], 16000)  # type: ignore[attr-defined]
    np.testing.assert_allclose(read(tmp_path / "a.flac")[0][0], WAVE)


def test_without_soundfile_other_forms_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match="pip install soundfile"):
        read(tmp_path / "a.flac")
