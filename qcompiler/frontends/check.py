"""Holds an exported graph against its module, on real inputs of other sizes than those that were traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.errors import DataError, ModelError
from qcompiler.ir.model import Model
from qcompiler.runtime.session import Session

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
TOLERANCE = 1e-4  # float32 rounds to 1e-7; decoders with activations in the thousands amplify that to 1e-5
TEXT = (
    "The harbour was quiet at noon. A fisherman mended his net beside the wall, and two children watched the gulls "
    "circle above the boats. In 1897 the lighthouse was rebuilt with stone from the northern quarry; its lamp could be "
    "seen from twenty miles away. Nobody remembers why the keeper left, but his notebooks, full of weather and small "
    "drawings, are kept in the town library, where anyone may read them on request."
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One output in one step.

    Attributes:
        step: what was run, such as "decode 3x1 after 7".
        output: its name.
        error: largest absolute difference from torch, over the largest absolute value that torch computed.
    """

    step: str
    output: str
    error: float


Check = Callable[[Run], Iterator[Compared]]


def compare(step: str, output: str, got: Any, want: Any) -> Compared:
    """The error of one output; infinite where shapes differ or a value is not finite in one of the two only."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return Compared(step, output, float("inf"))
    if not want.size:
        return Compared(step, output, 0.0)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(got), finite):
        return Compared(step, output, float("inf"))
    want64, got64 = want[finite].astype(np.float64), got[finite].astype(np.float64)
    top = float(np.abs(want64).max(initial=0.0))
    return Compared(step, output, float(np.abs(got64 - want64).max(initial=0.0)) / (top or 1.0))


def check(
    graphs: Sequence[Path | Model],
    checks: Sequence[Check],
    tolerance: float,
    label: str,
    opening: Callable[[], None] | None = None,
) -> list[Compared]:
    """Runs the checks of each graph.

    Args:
        graphs: files; or models, whose weights are read where they lie, and no faster for it.
        checks: of each.
        tolerance: largest error.
        label: of the source in messages.
        opening: is called before a graph is opened, which is when it is run for the first time.

    Raises:
        ModelError: the graph does not run, or an error is above the tolerance.
    """
    found = [one for graph, each in zip(graphs, checks, strict=True) for one in _run(graph, each, label, opening)]
    worst = max(found, key=lambda one: one.error)
    if worst.error <= tolerance:
        return found
    raise ModelError(
        f"the export of {label} does not compute what torch computes: output '{worst.output}' is off by "
        f"{worst.error:.1e} of its largest value in the step '{worst.step}', and {tolerance:.0e} is allowed. "
        "Nothing was written. Its code may decide by values or sizes, which a graph cannot: try a newer transformers, "
        "--no-past, a module that is rewritten (qcompiler export file.py:build), or, if this error is acceptable, "
        "--tolerance."
    )


def _run(graph: Path | Model, each: Check, label: str, opening: Callable[[], None] | None) -> list[Compared]:
    @cache
    def session() -> Session:
        if opening is not None:
            opening()
        return Session(graph, quick=isinstance(graph, Model))

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return session().run({name: np.ascontiguousarray(value) for name, value in feeds.items()})
        except (DataError, ModelError) as error:
            sizes = ", ".join(f"{name} {np.shape(value)}" for name, value in list(feeds.items())[:4])
            reason = str(error).partition(". Give each input")[0].rstrip(".")
            raise ModelError(
                f"the export of {label} does not run on inputs of other sizes than those that were traced ({sizes}): "
                f"{reason}. Its code may fix sizes while it is traced: try a newer transformers, or a module that is "
                "rewritten (qcompiler export file.py:build)."
            ) from error

    return list(each(run))


def token_ids(tokenizer: Any, vocabulary: int, count: int) -> tuple[list[int], bool]:
    """Token ids of a text, repeated to a length; without a tokenizer, or if its ids do not fit, random ones.

    Returns:
        The ids, and whether they are text.
    """
    ids: list[int] = []
    if tokenizer is not None:
        ids = [int(one) for one in tokenizer(TEXT)["input_ids"]]
    if ids and max(ids) < vocabulary:
        return (ids * (count // len(ids) + 1))[:count], True
    rng = np.random.default_rng(0)
    return [int(one) for one in rng.integers(0, vocabulary, count)], False
