"""The predicted time of an engine beside that of the same model in high precision, on each GPU of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qcompiler.engines.rates import EVERY, Gpu, gpus
from qcompiler.engines.roofline import Roofline
from qcompiler.target import FIRST_FP8_SM, DType, Target

ALWAYS: Final = "caches, how well a kernel fills the GPU, and kernels that run side by side"
SPELLED: Final = {DType.FP16: "float16", DType.BF16: "bfloat16", DType.FP32: "float32"}


def predicted_for(target: Target, engine: Roofline) -> list[Gpu]:
    """The GPUs that a time can be predicted for: the target's, or where it names none, those that its plan runs on.

    Args:
        target: engine and GPUs.
        engine: what it takes: FP8 ends with the GPUs that have it.
    """
    known = gpus()
    if target.sms:
        return [known[sm] for sm in target.sms if sm in known]
    fp8 = DType.FP8 in engine.macs
    return [known[sm] for sm in EVERY if not fp8 or int(sm[2:]) >= FIRST_FP8_SM]


@dataclass(frozen=True)
class Prediction:
    """What two engines of one model take, and how long that is at best.

    Attributes:
        dtype: the high-precision type.
        high: the engine with everything in that type.
        engine: the engine that was built.
        gpus: where.
        shapes: the input shapes that it is predicted for; empty where none is free.
        profiles: how many optimization profiles the engine has; the first one is predicted.
        decode: the same for the profile of a decoder that adds a token at a time; None where there is none.
    """

    dtype: DType
    high: Roofline
    engine: Roofline
    gpus: Sequence[Gpu]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    profiles: int = 1
    decode: Prediction | None = None

    @property
    def ratio(self) -> float:
        """Time of the engine over that in high precision, on the GPU where that is worst."""
        return max((self.engine.seconds(gpu) / self.high.seconds(gpu) for gpu in self.gpus), default=1.0)

    @property
    def slower(self) -> bool:
        """Whether there is a GPU on which high precision is predicted to be faster."""
        return self.ratio > 1.0 + 1e-9

    @property
    def leaves_out(self) -> str:
        """What is not in the figures, as the end of a sentence."""
        both = (self.high, self.engine)
        parts = [ALWAYS]
        if any(one.unsized for one in both):
            unsized = max(one.unsized for one in both)
            parts.append(f"{unsized} kernels with tensors whose size is known only at run time")
        if any(one.jumps for one in both):
            parts.append("what branches skip and loops repeat")
        if any(one.unlisted for one in both):
            parts.append(f"{max(one.unlisted for one in both)} multiply-accumulates that no kernel is listed for")
        if self.profiles > 1 + (self.decode is not None):
            parts.append("all optimization profiles but the first")
        return "; ".join(parts)

    @property
    def warning(self) -> str | None:
        """What must be said where high precision would be faster; None where it would not."""
        if not self.slower:
            return None
        return f"{self.told_slower}. --objective time keeps in high precision what is not faster quantized"

    @property
    def told_slower(self) -> str:
        """Where high precision would be faster, and why, as a sentence without its end."""
        spelled, slow = SPELLED[self.dtype], [one for one in self.gpus if self._times(one)[1] > self._times(one)[0]]
        listed = ", ".join(
            f"{high * 1e6:.0f} µs in {spelled}, {own * 1e6:.0f} µs as it is on {gpu.sm.upper()}"
            for gpu in slow
            for high, own in [self._times(gpu)]
        )
        return f"this engine is predicted slower than the same model in {spelled}: {listed}; {self._cause()}"

    def _cause(self) -> str:
        more = len(self.engine.launches) - len(self.high.launches)
        moved = f"{self.high.bytes / 1e6:.3g} MB become {self.engine.bytes / 1e6:.3g} MB"
        return f"it has {more:+d} kernels, and {moved} of memory traffic"

    def _times(self, gpu: Gpu) -> tuple[float, float]:
        return self.high.seconds(gpu), self.engine.seconds(gpu)

    def to_json(self) -> dict[str, Any]:
        """For the manifest; times in microseconds."""
        sms = {}
        for gpu in self.gpus:
            high, engine = self._times(gpu)
            sms[gpu.sm] = {"high_us": round(high * 1e6, 2), "engine_us": round(engine * 1e6, 2), "gpu": gpu.name}
        return {
            "sms": sms,
            "leaves_out": self.leaves_out,
            "warning": self.warning,
            "high_precision": SPELLED[self.dtype],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "high": _taken(self.high),
            "engine": _taken(self.engine),
            "decode": None if self.decode is None else self.decode.to_json(),
        }


def _taken(one: Roofline) -> dict[str, Any]:
    macs = {str(dtype): count for dtype, count in one.macs.items()}
    return {"kernels": len(one.launches), "bytes": round(one.bytes), "macs": macs, "unsized": one.unsized}
