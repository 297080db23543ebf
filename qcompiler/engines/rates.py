"""What GPUs can do at most, and the time that a kernel takes by it: a roofline.

    time = max(2 · MACs / (tensor · tops of the type), bytes / (memory · bandwidth)) + time between two kernels

The rates stand in `gpus.toml`, each with its source; the shares of the peaks that kernels reach are assumptions.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from qcompiler.errors import UsageError
from qcompiler.target import DType, Target

PORTABLE = "sm89"  # what is optimised for where a target names no GPU
EVERY = ("sm80", "sm86", "sm89", "sm120")  # what times are predicted for where a target names no GPU


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU.

    Attributes:
        sm: compute capability such as sm89.
        name: of the product whose figures these are.
        tops: dense operations per second in 10^12, by type; types it lacks are not there.
        gbps: memory bandwidth in 10^9 bytes per second.
        source: the publication.
        sure: `verified`, `single` or `derived` (see the data file).
        tensor: share of the peak that products reach.
        memory: share of the bandwidth that is reached.
        kernel_us: microseconds between two kernels.
    """

    sm: str
    name: str
    tops: Mapping[DType, float]
    gbps: float
    source: str
    sure: str
    tensor: float
    memory: float
    kernel_us: float


@cache
def gpus() -> Mapping[str, Gpu]:
    """All GPUs of the data file, by compute capability."""
    data = tomllib.loads(resources.files("qcompiler").joinpath("engines/gpus.toml").read_text(encoding="utf8"))
    assumed = data.pop("assumptions")
    return {
        sm: Gpu(
            sm,
            row["name"],
            {DType(name): float(value) for name, value in row["tops"].items()},
            float(row["gbps"]),
            row["source"],
            row["sure"],
            assumed["tensor"],
            assumed["memory"],
            assumed["kernel_us"],
        )
        for sm, row in data.items()
    }


def gpus_of(target: Target) -> list[Gpu]:
    """The GPUs that a target is for; the portable one where it names none.

    Raises:
        UsageError: a compute capability without figures.
    """
    known = gpus()
    missing = [sm for sm in target.sms if sm not in known]
    if missing:
        raise UsageError(
            f"there are no rates for {missing[0]} to compare formats by: choose precision int8, fp8 or fp16, or a "
            f"target with {', '.join(known)}"
        )
    return [known[sm] for sm in target.sms or (PORTABLE,)]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: multiply-accumulates, the type they are done in, and bytes moved."""

    macs: int
    dtype: DType
    bytes: float

    def seconds(self, gpu: Gpu) -> float:
        """Time at the rates of a GPU; inf where it lacks the type."""
        rate = gpu.tops.get(self.dtype, 0.0) * gpu.tensor * 1e12
        compute = 0.0 if not self.macs else 2 * self.macs / rate if rate else math.inf
        return max(compute, self.bytes / (gpu.gbps * gpu.memory * 1e9)) + gpu.kernel_us * 1e-6
