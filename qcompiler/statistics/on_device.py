"""Statistics of tensors that lie on a GPU, computed there by torch: only counts and maxima come back.

What is computed is what the functions of `histogram.py` and `maxima.py` compute of the same values, to the bit: counts
are integers, and maxima are of magnitudes. Without torch, or with one that does not see the device, tensors are copied
into the host's memory and counted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.runtime.gpu.device import CUDA, Device, OnDevice

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGNITUDE = 0x7FFFFFFF


def held(value: Any) -> Any:
    """A tensor of torch where the value lies on a device that torch sees, without a copy; else an array."""
    if not isinstance(value, OnDevice) or not _sees(value.value.device_name()):
        return np.asarray(value)
    import torch

    return torch.from_dlpack(value.value)


def counts_with(device: Device) -> str:
    """What counts tensors of a device, in words for the manifest."""
    if not _sees(device.kind):
        return "numpy"
    import torch

    return f"torch {torch.__version__}"


@lru_cache(maxsize=4)
def _sees(kind: str) -> bool:
    """Whether torch is installed, and can compute where ONNX Runtime leaves tensors of this kind of device."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available()) if kind.lower() == CUDA else True


def moved(value: Any, axis: int, to: int) -> Any:
    """A tensor or an array with an axis in another place."""
    return np.moveaxis(value, axis, to) if isinstance(value, np.ndarray) else value.movedim(axis, to)


def on_host(value: Any) -> NDArray[Any]:
    """A tensor or an array as an array."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.cpu().numpy())


def buckets(
    value: Any, keep: NDArray[np.bool_] | None, shift: int, count: int
) -> tuple[NDArray[np.uint64], float, float, int]:
    """How many elements have which top bits below the sign of their float32 pattern, and the finite extremes.

    Args:
        value: a float tensor of torch, of any shape.
        keep: which elements count, broadcasts to it; None for all.
        shift: bits at the lower end that do not count.
        count: how many patterns are left.

    Returns:
        uint64 [count]; smallest and largest finite value, infinity and minus infinity without one; how many elements.
    """
    import torch

    wide = value.float()
    if keep is not None:
        wide = wide[torch.from_numpy(np.ascontiguousarray(keep)).to(wide.device).expand(wide.shape)]
    flat = wide.reshape(-1)
    if not flat.numel():
        return np.zeros(count, np.uint64), np.inf, -np.inf, 0
    pattern = (flat.view(torch.int32) >> shift) & (count - 1)
    counts = torch.bincount(pattern, minlength=count)
    low, high = torch.aminmax(flat)
    if not torch.isfinite(high - low):
        finite = flat[torch.isfinite(flat)]
        low, high = torch.aminmax(finite) if finite.numel() else (torch.tensor(np.inf), torch.tensor(-np.inf))
    return on_host(counts).astype(np.uint64), float(low), float(high), flat.numel()


def peaks(
    value: Any, first: bool, mask: NDArray[np.bool_] | None, folds: Sequence[int], most: int
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Largest |x| of each position and of the channels of each fold; arguments and results as of `outliers._peaks`.

    Args:
        value: a finite float tensor of torch, [samples, positions, channels].
        first: channels come in front of positions.
        mask: bool [samples, positions]; None for all.
        folds: of each sample.
        most: how many folds there are.
    """
    import torch

    bits = value.float().contiguous().view(torch.int32) & _MAGNITUDE
    if mask is not None:
        bits = bits * torch.from_numpy(np.ascontiguousarray(mask)).to(bits.device)[:, :, None]
    rows, columns = bits.amax(dim=1 if first else 2), bits.amax(dim=2 if first else 1)
    channels = np.zeros((most, columns.shape[1]), np.uint32)
    np.maximum.at(channels, np.asarray(folds, np.intp), on_host(columns).view(np.uint32))
    return on_host(rows).view(np.float32), channels
