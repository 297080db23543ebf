"""Manifests put together by hand, for reports and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.plan import Plan
from qcompiler.recipe.recipe import Recipe
from qcompiler.report.manifest import SCHEMA
from qcompiler.support.as_json import plain
from qcompiler.support.file import File
from qcompiler.support.machine import environment, own_version, peak_memory_mb, version_of

if TYPE_CHECKING:
    from qcompiler.engines.audit import Audit
    from qcompiler.engines.base import EngineFile
    from qcompiler.passes.base import Report
    from qcompiler.verification.compare import Verification

SCHEMA_1 = Path(__file__).parent / "data" / "schema_1.manifest.json"  # of an encoder, most records cut out


def build(
    *,
    source: File | None,
    recipe: Recipe,
    export: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    random_data: bool = False,
    passes: Sequence[Report] = (),
    equivalence: Mapping[str, float] | None = None,
    plan: Plan | None = None,
    safety: Any = None,
    outliers: Any = (),
    residuals: Any = (),
    smooth_quant: Any = None,
    qfem: Any = None,
    qfep: Any = None,
    weight_only: Any = None,
    llm_int8: Any = None,
    verification: Verification | None = None,
    engine: EngineFile | None = None,
    profiles: Any = None,
    cache: Any = None,
    audit: Audit | None = None,
    files: Mapping[str, File] | None = None,
    timings: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    verdict: Mapping[str, Any] | None = None,
    missed: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    tries: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Puts a manifest together; what did not take place is None.

    Args:
        source: the float model.
        recipe: as it was effectively used.
        export: what the float model was exported as, and how far it is from torch in each step of the check.
        data: name, feeds (how many) and fingerprint of the calibration data.
        random_data: the data is noise, so accuracy figures mean nothing.
        passes: one report for each pass, in order.
        equivalence: largest relative error that each float pass introduced, by its text form.
        plan: decisions and quantizers.
        safety: figures of the accuracy safety net; `curve` in it, a list of {"share", "sqnr_db"}, is plotted.
        outliers: channels and tokens that stand out, a record for each activation of a candidate.
        residuals: the ranges at each residual Add.
        smooth_quant: what was decided for each group of layers, and how many scales were folded or inserted.
        qfem: the threshold of QFeM, its curve, and the layers that it keeps high.
        qfep: the prefix, how it was found, and how single tokens stand out before and behind it.
        weight_only: which weights are stored in few bits, by which method, and what that costs each layer.
        llm_int8: which channels of which layers are multiplied apart, and what that costs.
        verification: the comparison with float.
        engine: the built engine.
        profiles: its optimization profiles.
        cache: inputs and outputs of a decoder's key-value cache, which axis grows, bytes per token.
        audit: what the engine's own listing confirms.
        files: the other artefacts, by what they are, such as "qdq".
        timings: seconds by stage, in order.
        warnings: sentences for people.
        verdict: what is to be thought of the result, and why.
        missed: the gate that was missed, and its exit code.
        inputs: the values of each input, by what the data is for.
        tries: goal, outcome and missed gate of each plan.
    """
    errors = equivalence or {}
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "qcompiler": version_of("onnx-qcompiler") or own_version(),
                "missed": missed,
                "verdict": verdict,
                "warnings": warnings,
                "environment": environment(),
                "source": source,
                "export": export,
                "data": data,
                "ranges": None,
                "inputs": inputs,
                "random_data": random_data,
                "not_measured": [],
                "target": recipe.resolve(),
                "recipe": recipe.to_dict(),
                "passes": [_pass(report, errors) for report in passes],
                "equivalence": None,
                "macs": None if plan is None else _macs(plan),
                "plan": None if plan is None else list(plan),
                "quantizers": None if plan is None else list(plan.quantizers.values()),
                "histograms": {},
                "graph": None,
                "edits": {},
                "goal": None,
                "rungs": [],
                "front": [],
                "safety": safety,
                "outliers": outliers,
                "residuals": residuals,
                "smooth_quant": smooth_quant,
                "qfem": qfem,
                "qfep": qfep,
                "weight_only": weight_only,
                "llm_int8": llm_int8,
                "verification": None if verification is None else verification.to_json(),
                "tries": tries,
                "engine": None if engine is None else _engine(engine, profiles),
                "cache": cache,
                "audit": None if audit is None else audit.to_json(),
                "prediction": None,
                "estimate": None,
                "files": files or {},
                "timings": {stage: round(seconds, 3) for stage, seconds in (timings or {}).items()},
                "reused": {},
                "peak_memory_mb": peak_memory_mb(),
            }
        )
    )


def _pass(report: Report, errors: Mapping[str, float]) -> dict[str, Any]:
    return {
        "pass": report.name,
        "seconds": round(report.seconds, 4),
        "changed": report.changed,
        "skipped": report.skipped,
        "relative_error": errors.get(report.name),
        "undone": report.undone or None,
    }


def _macs(plan: Plan) -> dict[str, Any]:
    by_precision: dict[str, int] = {}
    for decision in plan:
        by_precision[decision.precision.value] = by_precision.get(decision.precision.value, 0) + decision.macs
    return {
        "total": sum(by_precision.values()),
        "quantized_share": plan.share(),
        "by_precision": {name: by_precision[name] for name in sorted(by_precision) if by_precision[name]},
    }


def _engine(engine: EngineFile, profiles: Any) -> dict[str, Any]:
    row = engine.to_json()
    row["file"] = Path(row.pop("path")).name
    row["sha256"] = File.of(engine.path).sha256 if engine.path.is_file() else None
    row["profiles"] = profiles
    return {"file": row.pop("file"), **row}


_MEASURED = frozenset({"seconds", "timings", "reused", "peak_memory_mb", "estimate"})


def settled(data: Any) -> Any:
    """What a manifest says without the times and the memory, which differ from run to run."""
    if isinstance(data, Mapping):
        return {key: settled(value) for key, value in data.items() if key not in _MEASURED}
    return [settled(value) for value in data] if isinstance(data, list | tuple) else data
