"""The noise that every group of layers sends to the outputs alone, from few joint runs.

    run 1   a b c d      <e1, e1> = Na + Nb + Nc + Nd
    run 2   a   c        <e1, e2> = Na      + Nc
    run 3   a b          <e2, e3> = Na

With a random half of the groups quantized, the error at the outputs is the sum of what these groups do, and errors of
different layers are nearly orthogonal: outputs have thousands of elements. So the product of the errors of two runs is
the noise of the groups that both had quantized. R runs give R (R + 1) / 2 such equations, and the noise of G groups,
none of it negative, is what fits them best: 2 sqrt(2 G) runs do for what G runs of one group each would tell, where
there is no time for these.

The idea of testing groups is that of Dorfman 1943, "The detection of defective members of large populations"; here the
members do not hide each other, they add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Use

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Noise = NDArray[np.float64]  # [views]

SEED = 43
TRIES = 20  # of columns for each group
SWEEPS = 2000  # of the solver, which stops as soon as nothing moves
LEAST = 1e-4  # of its even share: no group is taken to be without any noise


@dataclass(frozen=True, eq=False)
class AloneNoise:
    """The noise of each group alone.

    Attributes:
        noise: noise-to-signal power by group: [views], in the order of the measure's views.
        joint: it was solved for; otherwise each group was run alone.
        tests: runs of the model that each sample took.
        samples: how many samples were run.
    """

    noise: Mapping[str, Noise]
    joint: bool
    tests: int
    samples: int


def runs_to_solve(groups: int) -> int:
    """Joint runs that tell so many groups apart: four equations for each unknown."""
    return math.ceil(2 * math.sqrt(2 * groups))


def each_alone(measure: Measure, plan: Mapping[str, Use], budget: int) -> AloneNoise:
    """The noise of every group of a plan.

    Groups are run one by one where the budget has room for it, on few samples if need be: errors of layers that reach
    a small output in the same direction are not orthogonal, however many samples there are.

    Args:
        measure: runs plans on its `few` first samples.
        plan: how each group is quantized.
        budget: runs of the model; the least that can be solved is run all the same.
    """
    names = list(plan)
    tests, samples = runs_to_solve(len(names)), 1
    if len(names) <= max(tests, budget):
        return _one_by_one(measure, plan)
    if budget < tests:
        tests = max(budget, math.ceil(math.sqrt(2 * len(names))) + 1)
    else:
        samples = min(measure.samples, budget // tests)
    design = designed(len(names), tests)
    plans = [{name: plan[name] for name, taken in zip(names, row, strict=True) if taken} for row in design]
    products = measure.products(plans, samples)
    if products is None:  # one group that is not finite hides all others
        return _one_by_one(measure, plan)
    solved = np.stack([solve(design, one) for one in products], axis=-1)  # [groups, views]
    return AloneNoise(dict(zip(names, solved, strict=True)), joint=True, tests=tests, samples=samples)


def _one_by_one(measure: Measure, plan: Mapping[str, Use]) -> AloneNoise:
    measure.ahead([{name: use} for name, use in plan.items()], few=True)
    noise = {name: measure.noises({name: use}, few=True) for name, use in plan.items()}
    return AloneNoise(noise, joint=False, tests=len(plan), samples=measure.few)


def designed(groups: int, tests: int) -> NDArray[np.bool_]:
    """Which groups each run has quantized: [tests, groups]; all of them in the first, half of them in the others."""
    rng = np.random.default_rng(SEED)
    half = np.arange(tests - 1) < (tests - 1) // 2
    columns: dict[bytes, NDArray[np.bool_]] = {}
    for _ in range(TRIES * groups):  # two groups that are always together cannot be told apart
        if len(columns) == groups:
            break
        column = np.concatenate([[True], rng.permutation(half)])
        columns.setdefault(column.tobytes(), column)
    more = [np.concatenate([[True], rng.permutation(half)]) for _ in range(groups - len(columns))]
    return np.asarray(np.stack([*columns.values(), *more], axis=1), np.bool_)


def solve(design: NDArray[np.bool_], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise of each group that fits products of errors best, in least squares: [groups], none of it negative.

    Args:
        design: which groups each run had quantized: [tests, groups].
        products: of the errors of two runs: [tests, tests].
    """
    first, second = np.triu_indices(len(design))
    power = np.sqrt(np.maximum(np.diag(products), np.finfo(np.float64).tiny))
    weights = 1 / (power[first] * power[second])  # what is no noise of a common group grows with both
    equations = (design[first] & design[second]) * weights[:, None]
    wanted = products[first, second] * weights
    normal, right = equations.T @ equations, equations.T @ wanted
    found = np.zeros(design.shape[1])
    for _ in range(SWEEPS):
        before = found.copy()
        for at in range(len(found)):  # coordinate descent: the one unknown that is left has a minimum of its own
            rest = right[at] - normal[at] @ found + normal[at, at] * found[at]
            found[at] = max(0.0, rest / normal[at, at])
        if np.abs(found - before).max() <= 1e-9 * max(found.max(), np.finfo(np.float64).tiny):
            break
    return np.asarray(np.maximum(found, LEAST * found.mean()), np.float64)
