"""Second moments of what products read: H = Σ x·xᵀ over all rows of all samples, which GPTQ rounds weights by.

    H [K, K],  one for each activation: q, k and v share it, and so do gate and up

The data is streamed: a run of the model leaves nothing behind but the sums. Rows are multiplied in float32 a few
hundred at a time and the products are summed in float64, so that neither many samples nor spiking tokens cost digits.

A Hessian takes 8·K² bytes: 19 MB for K = 1536, 1.6 GB for K = 14336. As many as fit `budget` are summed in one run of
the data and handed out before the next ones are begun, so the data is run once for a small model and several times for
a large one. At least one is summed at a time, whatever it takes.

All layers see the inputs of the float model. GPTQ can also be done layer by layer, on the inputs that the layers before
give once they are rounded; that takes a run of the data for every group of layers, and is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import fill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.runtime.stream import Part

    Hessian = NDArray[np.float64]


BUDGET = 2 << 30  # bytes of Hessians that are summed at a time
_ROWS = 512  # that are multiplied in float32 before they are summed in float64


def hessians(
    model: models.Model,
    depths: Mapping[str, int],
    source: Iterable[Feeds],
    *,
    budget: int = BUDGET,
    advance: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Hessian]]:
    """Runs the data and yields the Hessians of some activations after the other.

    Args:
        model: the float model.
        depths: by activation, its last dimension K; graph inputs are allowed.
        source: feeds; iterated once for each group of activations that fits the budget.
        budget: bytes of Hessians at a time.
        advance: called with the number of runs of the model since the last call.

    Yields:
        By activation, float64 [K, K], symmetric. What was yielded before is not kept here.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    for group in batches(depths, budget):
        yield _observed(model, {name: depths[name] for name in group}, source, advance)


def batches(depths: Mapping[str, int], budget: int = BUDGET) -> list[list[str]]:
    """The activations in their order, in groups whose Hessians fit the budget; at least one in each."""
    groups: list[list[str]] = []
    left = 0
    for name, depth in depths.items():
        size = 8 * depth * depth
        if not groups or size > left:
            groups.append([])
            left = budget
        groups[-1].append(name)
        left -= size
    return groups


def _observed(
    model: models.Model, depths: Mapping[str, int], source: Iterable[Feeds], advance: Callable[[int], None] | None
) -> dict[str, Hessian]:
    seen = Hessians(depths)
    fill(model, [seen], source, advance=advance)
    return seen.found


class Hessians:
    """The Hessian of each of some activations, filled by `qcompiler.runtime.stream.fill`.

    Attributes:
        found: by activation, float64 [K, K].
    """

    def __init__(self, depths: Mapping[str, int]) -> None:
        """`depths` are last dimensions K, by activation."""
        self.found: dict[str, Hessian] = {name: np.zeros((depth, depth)) for name, depth in depths.items()}

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the activations."""
        return list(self.found)

    def update(self, part: Part) -> None:
        """Adds the rows of those that are in the part."""
        for name, total in self.found.items():
            if name in part.values:
                add(total, np.asarray(part.values[name]))

    def merge(self, other: Hessians) -> None:
        """Adds the sums of another one; in float64, so the order of merging counts in the last bits."""
        for name, total in other.found.items():
            self.found[name] += total


def add(total: Hessian, x: NDArray[Any]) -> None:
    """total += Σ x·xᵀ over the rows of x [..., K]."""
    rows = np.asarray(x, np.float32).reshape(-1, total.shape[0])
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        total += part.T @ part  # numpy recognises this as symmetric and does half of the work


def of_rows(values: NDArray[np.float32], counts: NDArray[np.float32]) -> Hessian:
    """The Hessian that recorded rows [rows, K] stand for, `counts` [rows] times each."""
    found = np.zeros((values.shape[1],) * 2)
    add(found, values * np.sqrt(counts)[:, None])
    return found


def error(w: NDArray[np.float32], hessian: Hessian, difference: NDArray[np.float32]) -> float:
    """Σ |xᵀ·difference|² / Σ |xᵀ·w|² over the rows that made the Hessian: what a layer's output errs, as a power.

    Args:
        w: the float weight [K, N].
        hessian: [K, K].
        difference: what was stored less `w`, [K, N].
    """
    h = hessian.astype(np.float32)
    signal, noise = (float(np.vdot(one, h @ one)) for one in (w, difference))
    return max(noise, 0.0) / signal if signal > 0 else 0.0
