"""What it costs that a model in double is computed in FP32: both run side by side where ONNX Runtime has kernels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.ir import element_types
from qcompiler.ir import model as models
from qcompiler.ir.signature import Array, Feeds, inputs_of
from qcompiler.numerics.sqnr import sqnr_db
from qcompiler.runtime.stream import OpenModel
from qcompiler.verification.replay import fitting_inputs

LOST_DB = 25.0  # below, what is computed is another function; rounding alone leaves 100 dB and more
DOUBTFUL_DB = 60.0
_FP64 = np.dtype(np.float64)
_NO_KERNEL = re.compile(r"no kernel for node .*?\)")  # of what `Session` says


@dataclass(frozen=True, slots=True)
class Narrowing:
    """How far FP32 is from double.

    Attributes:
        samples: how many were run.
        sqnr_db: of the worst output; None where nothing was run.
        output: its name; empty where nothing was run.
        why: why nothing was run, in words; else empty.
    """

    samples: int
    sqnr_db: float | None = None
    output: str = ""
    why: str = ""

    @property
    def warning(self) -> str:
        """What to tell; empty where rounding costs nothing that matters."""
        if self.why:
            return (
                "the model is double and is computed in FP32; what that costs could not be measured, as ONNX Runtime "
                f"does not run it in double ({self.why})"
            )
        if self.sqnr_db is None or self.sqnr_db >= DOUBTFUL_DB:
            return ""
        return (
            f"the model is double and is computed in FP32, which leaves {self.sqnr_db:.1f} dB in output "
            f"'{self.output}' on {self.samples} samples; every other figure is against FP32"
        )


def is_narrower(original: models.Model, model: models.Model) -> bool:
    """Whether something that is double in one model is FP32 in the other."""
    return original is not model and _doubles(model) < _doubles(original)


def _doubles(model: models.Model) -> int:
    return sum(dtype == _FP64 for dtype in element_types.infer_all(model.graph).values())


def narrowing(original: models.Model, model: models.Model, feeds: Iterable[Feeds]) -> Narrowing:
    """Runs both models.

    Args:
        original: in double.
        model: the same in FP32.
        feeds: of `original`, in its types.

    Raises:
        ModelError: FP32 loses what the outputs are made of; names the worst one.
    """
    given = list(feeds)
    if not given:
        return Narrowing(0)
    try:
        exact = OpenModel(original, quick=True)
        expected = [exact.run(feed) for feed in given]
    except ModelError as error:
        lacking = _NO_KERNEL.search(str(error))
        return Narrowing(0, why=lacking.group() if lacking else str(error))
    rounded = OpenModel(model, quick=True)
    inputs = inputs_of(model.graph)
    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    for feed, one in zip(given, expected, strict=True):
        other = rounded.run(fitting_inputs(feed, inputs))
        for name, (power, difference) in _powers(one, other).items():
            signal[name] += power
            noise[name] += difference
    figures = {name: sqnr_db(signal[name], noise[name]) for name in signal}
    if not figures:
        return Narrowing(len(given))
    worst = min(figures, key=lambda name: figures[name])
    found = Narrowing(len(given), figures[worst], worst)
    if figures[worst] < LOST_DB:
        raise ModelError(
            f"output '{worst}' computed in FP32 agrees with double to {figures[worst]:.1f} dB only, on {len(given)} "
            "samples: the model computes with numbers that float32 does not hold, such as times or counts beyond "
            "16777216, and engines have no double. Take the offset off before the model, or compute that part in "
            "front of a Cast to float, where it stays double for '--target onnxruntime'."
        )
    return found


def _powers(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Power of signal and of noise of each float output, over what is finite in both."""
    found = {}
    for name, values in one.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != other[name].shape:
            continue
        exact, close = values.astype(np.float64), other[name].astype(np.float64)
        both = np.isfinite(exact) & np.isfinite(close)
        found[name] = (float(np.sum(exact[both] ** 2)), float(np.sum((exact - close)[both] ** 2)))
    return found
