"""What fitting weights leaves of the error that rounding them makes, told before anything is fitted.

    rounded to the nearest    E |x·(W - Ŵ)|² = Σ_o Δ_o²/12 · Σ_i P_i / s_i²
    fitted (GPTQ)             E |x·(W - Ŵ)|² = Σ_o Δ_o²/12 · Σ_i u_i P_i / s_i²

P_i is the power of input channel i, s_i what it is divided by, Δ_o the step of output o, and u_i P_i what is left of
the channel's power once channels of less power explain what they can of it: these are rounded behind it, and make up
for its error. So the pivots of `weight_only.gptq` are known from the second moments of the activation alone, for any s.

An alpha that is chosen by what nearest integers err is too small where weights will be fitted: then the activation is
what errs, and more of its range may move into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcompiler.ir import model as models
from qcompiler.statistics import hessian
from qcompiler.statistics.rows import Many, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DAMP: Final = 0.01  # of a channel's power, as fitting damps its Hessian


@dataclass(frozen=True, eq=False)
class Remains:
    """What an activation leaves of the error of rounding the weights that read it.

    Attributes:
        powers: of each channel, float64 [C].
        unexplained: the part of it that channels of less power do not explain, float64 [C], above 0 and 1 at most.
    """

    powers: Floats
    unexplained: Floats

    @classmethod
    def of(cls, moments: hessian.Moments) -> Remains:
        """From second moments; what is chance of them explains nothing."""
        powers = np.diag(moments.hessian).astype(np.float64)
        seen = np.flatnonzero(powers > 0)
        order = seen[np.argsort(powers[seen], kind="stable")]  # the least power first: what explains the next ones
        size = np.sqrt(powers[order])
        related = moments.hessian[np.ix_(order, order)] / size / size[:, None] * (1 - moments.shrinkage)
        np.fill_diagonal(related, 1 + DAMP)
        unexplained = np.ones(len(powers))
        unexplained[order] = np.minimum(np.diag(np.linalg.cholesky(related)) ** 2, 1.0)
        return cls(powers, unexplained)

    def share(self, scales: NDArray[np.float32]) -> float:
        """How much of the power of the error is left, 0..1, with channels divided by these, [C]."""
        divided = self.powers / scales.astype(np.float64) ** 2
        return float(np.dot(divided, self.unexplained) / max(divided.sum(), 1e-300))


def remains(model: models.Model, rows: Mapping[str, Rows], feeds: Many) -> dict[str, Remains]:
    """By activation, what it leaves; the feeds are run once or, where the moments are too large together, more often.

    Args:
        model: the float model.
        rows: recorded rows of the activations, which have their channels last.
        feeds: samples.

    Raises:
        DataError: a feed does not fit the model.
        ModelError: ONNX Runtime cannot run it.
    """
    depths = {name: one.values.shape[1] for name, one in rows.items()}
    found: dict[str, Remains] = {}
    for part in hessian.hessians(model, depths, feeds) if depths else ():
        found |= {name: Remains.of(moments) for name, (moments,) in part.items()}
    return found
