"""The stage that holds the engine's own listing of kernels against the plan."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.engines.audit import Audit
from qcompiler.errors import EngineError
from qcompiler.outliers.llm_int8 import Splits, apart_of, kernels
from qcompiler.plan import Plan
from qcompiler.target import Target


@stage(kept=False)
def audit(
    run: Compilation,
    engine: Path,
    model: Path,
    plan: Plan,
    splits: Splits,
    target: Target,
    strict: bool,
    changeable: Collection[str] = (),
) -> Done[Audit | None]:
    """What the listing confirms; None for engines that write none (only TensorRT-RTX does).

    From here on, the share of the work in low precision is what the listing confirms.

    Args:
        engine: the engine file.
        model: the ONNX file that it was built from.
        plan: what was promised.
        splits: products of outlier channels, whose kernels are counted.
        target: the engine.
        strict: a promise that is not confirmed is an error.
        changeable: nodes whose plan changes where the engine does not keep it (see `unkept`): they are not worth a
            warning yet.

    Raises:
        EngineError: strict, and a promise was not kept.
    """
    if target.engine != "tensorrt-rtx":
        return Done(None, {"audit": None})
    from qcompiler.engines.audit import audit as compare

    with run.working():
        found = compare(engine, model, {decision.node: decision.precision for decision in plan})
    tried_again = unkept(found, changeable)
    for finding in () if tried_again else found.mismatches:
        run.warn(f"fusion audit: {finding.kind}: {finding.node}: {finding.text}")
    if found.mismatches and strict and not tried_again:
        raise EngineError(
            f"the engine does not keep {len(found.mismatches)} promise(s) of the plan: {found.mismatches[0].text} "
            "Keep the named nodes in high precision with --keep, or build without --strict to get a warning instead."
        )
    record: dict[str, Any] = {"audit": found.to_json()}
    if found.listed is not None:
        record["macs"] = plan.macs_by_precision(frozenset(found.listed))
    if splits.decided:
        record["llm_int8"] = {"kernels": kernels(engine, apart_of(splits, plan))}
    return Done(found, record)


def unkept(found: Audit | None, changeable: Collection[str]) -> tuple[str, ...]:
    """The nodes among `changeable` that the engine computes in float: with another plan it is built again."""
    return () if found is None else tuple(node for node in found.in_float() if node in changeable)
