"""The range with the least mean squared quantization error."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from qcompiler.calibrators.base import Calibrator
from qcompiler.calibrators.error_curve import ErrorCurve
from qcompiler.errors import UsageError
from qcompiler.numerics.rounding import LARGEST, Format
from qcompiler.statistics.histogram import Histogram
from qcompiler.support.suggest import did_you_mean

_OCTAVES_DOWN = 12
_OCTAVES_UP: dict[Format, int] = {"int8": 0, "fp8": 1}
_FINEST = 64  # candidates per octave, 1.1 % apart: the error curve is flat to 1e-4 on that scale
_STRIDES = (16, 4, 1)  # candidates skipped in each round, around the best of the round before
_TOLERANCE = 1e-3
_KNOWN: dict[tuple[Format, bytes], float] = {}  # ranges by format and content of the histogram
_MOST_KNOWN = 1 << 14


@dataclass(frozen=True)
class MSE(Calibrator):
    """The range with the least mean squared error of rounding and clipping together, on the grid of the format.

    Candidates are amax · 2**(k/64), searched coarse to fine from 12 octaves below the largest |x| up to it; for FP8 up
    to twice as much, since its grid repeats every octave and may fit better above. The error is that of
    `qcompiler.calibrators.error_curve.quantization_error`. Of all candidates within 0.1 % of the least error the
    largest is taken: it clips the least of what was not seen, and noise in the data does not move it.

    Attributes:
        format: `int8`, or `fp8` for the uneven grid of E4M3.

    Raises:
        UsageError: an unknown format.
    """

    format: Format = "int8"

    def __post_init__(self) -> None:
        if self.format not in LARGEST:
            raise UsageError(f"mse has no format '{self.format}': {did_you_mean(self.format, LARGEST)}")

    def choose(self, h: Histogram) -> float:
        """The largest of the best candidates; several stages ask for the same tensor, and it is looked for once."""
        key = (self.format, h.digest())
        if key not in _KNOWN:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = self._chosen(h)
        return _KNOWN[key]

    def _chosen(self, h: Histogram) -> float:
        error = ErrorCurve(h, self.format)
        lowest, highest = -_OCTAVES_DOWN * _FINEST, _OCTAVES_UP[self.format] * _FINEST
        errors: dict[int, float] = {}
        for k in range(highest, lowest - 1, -_STRIDES[0]):
            amax = h.amax * 2.0 ** (k / _FINEST)
            if errors and error.clipping(amax) > min(errors.values()) * (1 + _TOLERANCE):
                break  # below this range clipping alone costs more than the best so far
            errors[k] = error(amax)
        for coarse, fine in pairwise(_STRIDES):
            best = _largest_best(errors)
            for k in range(max(best - coarse, lowest), min(best + coarse, highest) + 1, fine):
                if k not in errors:
                    errors[k] = error(h.amax * 2.0 ** (k / _FINEST))
        return float(h.amax * 2.0 ** (_largest_best(errors) / _FINEST))


def _largest_best(errors: dict[int, float]) -> int:
    least = min(errors.values())
    return max(k for k, error in errors.items() if error <= least * (1 + _TOLERANCE))
