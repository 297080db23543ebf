"""What is counted of each output over all samples, padding left out: error, agreement, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.padding import Padding
from qcompiler.numerics.sqnr import cosine, sqnr_db
from qcompiler.runtime.finite import flat

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 13  # elements that are held as float64 at a time; as in `numerics.sqnr`


@dataclass(frozen=True, slots=True)
class Output:
    """How one output compares, pooled over all samples.

    Attributes:
        name: name of the output.
        dtype: element type in the float model.
        elements: how many values were compared.
        sqnr_db: SQNR in dB; infinite if nothing differs, None unless it is a float output.
        cosine: cosine similarity, -1..1, of all values as one vector; None unless it is a float output.
        max_abs: largest absolute error, in the output's own unit; None unless it is a float output.
        top1: share of rows of the last axis with the same largest index, 0..1; None where the last axis is below 2.
        equal: share of equal values, 0..1, of integer, boolean and text outputs; None for float outputs.
        not_finite: values that are finite in the float model and NaN or infinite in the quantized one.
        float_not_finite: values that are NaN or infinite in the float model already.
        reshaped: samples whose shape differs between the models; they are not compared.
        unlike: of `float_not_finite`, those that the quantized model does not share.
        nan: of `float_not_finite`, those that are NaN.
    """

    name: str
    dtype: str
    elements: int
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    top1: float | None
    equal: float | None
    not_finite: int
    float_not_finite: int
    reshaped: int
    unlike: int = 0
    nan: int = 0


class OutputTally:
    """Sums over the samples of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = ""
        self.elements = self.same = self.rows = self.same_rows = 0
        self.not_finite = self.float_not_finite = self.reshaped = self.unlike = self.nan = 0
        self.reference = self.quantized = self.product = self.noise = self.max_abs = 0.0

    def add(self, reference: Any, got: Any, padding: Padding) -> None:
        """Counts one sample; of a sequence or optional the arrays, as far as both have them."""
        if not isinstance(reference, np.ndarray) or not isinstance(got, np.ndarray):
            first, second = list(flat(reference)), list(flat(got))
            self.dtype = self.dtype or type(reference).__name__
            self.reshaped += len(first) != len(second)
            for one, other in zip(first, second, strict=False):
                self.add(one, other, padding)
            return
        if padding and reference.shape == got.shape:
            reference, got = padding.keep(reference), padding.keep(got)
        self.dtype = str(reference.dtype)
        if reference.shape != got.shape:
            self.reshaped += 1
            return
        self.elements += reference.size
        if reference.dtype.kind != "f":
            self.same += int(np.count_nonzero(reference == got))
            return
        self._add_rows(reference, got)
        first, second = reference.reshape(-1), got.reshape(-1)
        for start in range(0, first.size, _CHUNK):
            self._add_chunk(first[start : start + _CHUNK], second[start : start + _CHUNK])

    def _add_rows(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        if not reference.ndim or reference.shape[-1] < 2 or not reference.size:
            return
        agree = reference.argmax(-1) == got.argmax(-1)
        self.rows += agree.size
        self.same_rows += int(np.count_nonzero(agree))

    def _add_chunk(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        a, b = first.astype(np.float64), second.astype(np.float64)
        known, both = np.isfinite(a), np.isfinite(a) & np.isfinite(b)
        self.float_not_finite += int(np.count_nonzero(~known))
        self.not_finite += int(np.count_nonzero(known & ~both))
        if not known.all():
            self.nan += int(np.count_nonzero(np.isnan(a)))
            self.unlike += int(np.count_nonzero(~known & (a != b) & ~(np.isnan(a) & np.isnan(b))))
        if not both.all():
            a, b = a[both], b[both]
        error = a - b
        self.reference += float(a @ a)
        self.quantized += float(b @ b)
        self.product += float(a @ b)
        self.noise += float(error @ error)
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))

    def result(self) -> Output:
        """All samples so far."""
        compared = self.elements > 0
        is_float = compared and self.dtype.startswith("float")
        broken = self.not_finite > 0
        return Output(
            name=self.name,
            dtype=self.dtype,
            elements=self.elements,
            sqnr_db=(-math.inf if broken else sqnr_db(self.reference, self.noise)) if is_float else None,
            cosine=self._cosine() if is_float else None,
            max_abs=(math.inf if broken else self.max_abs) if is_float else None,
            top1=self.same_rows / self.rows if self.rows else None,
            equal=self.same / self.elements if compared and not is_float else None,
            not_finite=self.not_finite,
            float_not_finite=self.float_not_finite,
            reshaped=self.reshaped,
            unlike=self.unlike,
            nan=self.nan,
        )

    def _cosine(self) -> float:
        return 1.0 if self.noise == 0 else cosine(self.product, self.reference, self.quantized)


def failures_of(output: Output, *, reshaped: bool) -> Iterable[str]:
    """What no threshold excuses.

    Args:
        output: all samples.
        reshaped: another shape in all of them is told, too.
    """
    if output.not_finite:
        yield (
            f"output '{output.name}' has {output.not_finite} of {output.elements} values that are NaN or infinite and "
            "are finite in the float model"
        )
    if output.unlike:
        yield (
            f"output '{output.name}' has {output.unlike} values that are NaN or infinite in the float model, as it was "
            "made to be, and not the same in the quantized one"
        )
    if reshaped and output.reshaped and output.equal is None and output.sqnr_db is None:
        yield f"output '{output.name}' has another shape than in the float model in all {output.reshaped} samples"
