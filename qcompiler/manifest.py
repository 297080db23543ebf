"""The manifest: everything that is known about one compilation, as JSON beside the engine.

It is the only thing that the reports are made from, and the recipe in it can be replayed. Keys stand in a fixed order.
Paths are names of files, never folders of the machine, but for what the user wrote into the recipe or as --data.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qcompiler.errors import UsageError
from qcompiler.plain import plain
from qcompiler.plan import Plan
from qcompiler.recipe import Recipe
from qcompiler.samples import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.engines.audit import Audit
    from qcompiler.engines.engine import EngineFile
    from qcompiler.pass_ import Report
    from qcompiler.verification import Verification

SCHEMA: Final = 1
_DISTRIBUTIONS: Final = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime-gpu",
    "onnxruntime",
    "polygraphy",
    "tensorrt-rtx",
    "tensorrt",
)


@dataclass(frozen=True, slots=True)
class File:
    """A file as the manifest knows it: name without folder, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    bytes: int

    @staticmethod
    def of(path: str | Path) -> File:
        """Reads a file once, in pieces."""
        digest = hashlib.sha256()
        with Path(path).open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
            return File(Path(path).name, digest.hexdigest(), stream.tell())


class Fingerprint:
    """A hash over feeds that does not depend on their order: the sum of the hashes of each, modulo 2^256."""

    def __init__(self) -> None:
        self.feeds = 0
        self._sum = 0

    def add(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Adds one feed: names, dtypes, shapes and bytes of its arrays."""
        digest = hashlib.blake2b(fingerprint(feed), digest_size=32).digest()  # spread over all bits of the sum
        self.feeds += 1
        self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)

    def __str__(self) -> str:
        """64 hex digits."""
        return f"{self._sum:064x}"


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
    smoothing: Any = None,
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
        outliers: channels and tokens that stand out, a row for each activation of a candidate.
        residuals: the ranges at each residual Add.
        smoothing: what was decided for each group of layers, and how many scales were folded or inserted.
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
    """
    errors = equivalence or {}
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "qcompiler": _version("onnx-qcompiler") or _own_version(),
                "environment": environment(),
                "source": source,
                "export": export,
                "data": data,
                "random_data": random_data,
                "target": recipe.resolve(),
                "recipe": recipe.to_dict(),
                "passes": [_pass(report, errors) for report in passes],
                "macs": None if plan is None else _macs(plan),
                "plan": None if plan is None else list(plan),
                "quantizers": None if plan is None else list(plan.quantizers.values()),
                "safety": safety,
                "outliers": outliers,
                "residuals": residuals,
                "smoothing": smoothing,
                "qfem": qfem,
                "qfep": qfep,
                "weight_only": weight_only,
                "llm_int8": llm_int8,
                "verification": None if verification is None else verification.to_json(),
                "engine": None if engine is None else _engine(engine, profiles),
                "cache": cache,
                "audit": None if audit is None else audit.to_json(),
                "files": files or {},
                "timings": {stage: round(seconds, 3) for stage, seconds in (timings or {}).items()},
                "peak_memory_mb": peak_memory_mb(),
                "warnings": warnings,
            }
        )
    )


def to_text(manifest: Mapping[str, Any]) -> str:
    """The JSON text of a manifest, which holds neither NaN nor Infinity."""
    return json.dumps(plain(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path) -> dict[str, Any]:
    """Reads a manifest file.

    Raises:
        UsageError: there is none, or it was written by a newer qcompiler.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(f"manifest {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a manifest: it is not JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise UsageError(f"{path} is not a manifest of qcompiler: it has no 'schema'")
    if data["schema"] > SCHEMA:
        raise UsageError(f"{path} was written by a newer qcompiler ({data.get('qcompiler')}): update to read it")
    return data


def replay(path: str | Path) -> Recipe:
    """The recipe that a manifest file says was used.

    Raises:
        UsageError: it is no manifest, or its recipe is not valid in this version.
    """
    return Recipe.from_dict(read(path).get("recipe") or {}, f"recipe of {path}")


def environment() -> dict[str, Any]:
    """Versions of Python and of the libraries that are installed, without importing them, and the processor."""
    found = {name: version for name in _DISTRIBUTIONS if (version := _version(name))}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        **found,
    }


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far in MiB; None on systems that do not tell."""
    if sys.platform == "win32":
        return None
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _own_version() -> str:
    from qcompiler._version import __version__

    return __version__


def _pass(report: Report, errors: Mapping[str, float]) -> dict[str, Any]:
    return {
        "pass": report.name,
        "seconds": round(report.seconds, 4),
        "changed": report.changed,
        "skipped": report.skipped,
        "relative_error": errors.get(report.name),
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
