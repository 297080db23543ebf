"""Speech-like sound made by formula: a source-filter voice (Klatt's idea), so that tests need no recordings.

Everything is 16 kHz, float32, one channel, and seeded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RATE = 16_000
FORMANTS = {  # Hz of the first three resonances of a man's vowels (Peterson and Barney 1952)
    "i": (270, 2290, 3010),
    "e": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
Signal = np.ndarray[Any, np.dtype[np.float32]]


def voice(seed: int, seconds: float) -> Signal:
    """Syllables of a vowel after a hiss or a pause; peak about 0.5, no long silence."""
    random = np.random.default_rng([seed, 1])
    pitch = float(random.uniform(90, 220))
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < seconds * RATE:
        if random.random() < 0.4:
            pieces.append(_hiss(random))
        pieces.append(_vowel(random, pitch))
        pieces.append(np.zeros(int(random.uniform(0.01, 0.06) * RATE)))
    joined = np.concatenate(pieces)[: int(seconds * RATE)]
    return np.asarray(0.5 * joined / np.abs(joined).max(), np.float32)


def noise(seed: int, seconds: float) -> Signal:
    """Coloured noise with a slow swell, RMS 0.1."""
    random = np.random.default_rng([seed, 2])
    n = int(seconds * RATE)
    spectrum = np.fft.rfft(random.normal(size=n))
    coloured = np.fft.irfft(spectrum / (np.arange(len(spectrum)) + 1.0) ** random.uniform(0.2, 0.8), n)
    swell = 1 + 0.5 * np.sin(2 * np.pi * random.uniform(0.2, 1) * np.arange(n) / RATE)
    return np.asarray(0.1 * coloured * swell / np.sqrt((coloured**2).mean()), np.float32)


def noisy(seed: int, seconds: float, snr_db: float) -> tuple[Signal, Signal]:
    """The clean voice and the same in noise at `snr_db`."""
    clean, other = voice(seed, seconds), noise(seed, seconds)
    gain = np.sqrt((clean**2).mean() / (other**2).mean() / 10 ** (snr_db / 10))
    return clean, (clean + gain * other).astype(np.float32)


def conversation(seed: int, seconds: float) -> tuple[Signal, np.ndarray]:
    """Stretches of voice and of noise or near silence in turn, and bool [samples]: is it voice?"""
    random = np.random.default_rng([seed, 3])
    signal, spoken = np.zeros(int(seconds * RATE), np.float32), np.zeros(int(seconds * RATE), bool)
    start, speaking = 0, bool(seed % 2)
    while start < len(signal):
        length = float(random.uniform(0.8, 2))
        loud = float(random.uniform(0.3, 1.2))
        piece = (
            voice(int(random.integers(1 << 30)), length) if speaking else noise(int(random.integers(1 << 30)), length)
        )
        stop = min(start + len(piece), len(signal))
        signal[start:stop] = loud * (1.0 if speaking else 0.6) * piece[: stop - start]
        spoken[start:stop] = speaking
        start, speaking = stop, not speaking
    return (signal + random.normal(0, 0.001, len(signal))).astype(np.float32), spoken


def gain_db(clean: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    """How many dB of scale-invariant signal-to-distortion ratio `after` is better than `before`."""
    return _si_sdr(clean, after) - _si_sdr(clean, before)


def _si_sdr(clean: np.ndarray, estimate: np.ndarray) -> float:
    """SI-SDR in dB (Le Roux and others 2019)."""
    target = clean * (clean @ estimate) / (clean @ clean)
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


def _vowel(random: np.random.Generator, pitch: float) -> np.ndarray:
    """A pulse train of falling pitch through resonators that glide from one vowel to another."""
    n = int(random.uniform(0.08, 0.25) * RATE)
    contour = pitch * float(random.uniform(0.85, 1.2)) * np.linspace(1.05, 0.9, n) * (1 + 0.01 * random.normal())
    phase = np.cumsum(contour / RATE)
    sound = np.zeros(n)
    first, last = (FORMANTS[name] for name in random.choice(list(FORMANTS), 2))
    for harmonic in range(1, int(RATE / 2 / contour.max())):
        frequency = harmonic * contour
        level = 1.0 / harmonic  # the fall of a glottal pulse (12 dB an octave) with the lips' rise (6 dB)
        shape = sum(
            (0.5**k) / (1 + ((frequency - np.linspace(a, b, n)) / (60 + 30 * k)) ** 2)
            for k, (a, b) in enumerate(zip(first, last, strict=True))
        )
        sound += level * (shape + 0.02) * np.sin(2 * np.pi * harmonic * phase)
    return np.asarray(sound / np.abs(sound).max() * np.hanning(n) ** 0.4)


def _hiss(random: np.random.Generator) -> np.ndarray:
    """A fricative: noise above 2 to 4 kHz."""
    n = int(random.uniform(0.04, 0.12) * RATE)
    spectrum = np.fft.rfft(random.normal(size=n))
    spectrum[np.fft.rfftfreq(n, 1 / RATE) < random.uniform(2000, 4000)] *= 0.03
    sound = np.fft.irfft(spectrum, n)
    return np.asarray(0.25 * sound / np.abs(sound).max() * np.hanning(n))
