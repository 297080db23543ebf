"""One row measured: the plain pass of ONNX Runtime over the samples, then the compile, each a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.peers import ROOT
from benchmarks.results import machine
from benchmarks.scale.artefacts import artefacts
from benchmarks.scale.rows import Row
from benchmarks.scale.shape import SHAPES

MOST_S = 12 * 3600.0
KEPT = ("reused", "timings", "environment", "verdict", "estimate", "warnings")


@dataclass(frozen=True)
class Measured:
    """What a row took.

    Attributes:
        row: What was asked.
        plain: The process that only runs the float model over the samples.
        ours: The process of the compile.
        files: Hashes of its artefacts by name.
        manifest: What is kept of it, with the share of MACs that is quantized, and SQNR.
        when: Date of the end.
        where: The machine.
        commit: What was measured.
    """

    row: Row
    plain: process.Usage
    ours: process.Usage
    files: Mapping[str, str]
    manifest: Mapping[str, Any]
    when: str
    where: Mapping[str, Any]
    commit: str

    @property
    def time_ratio(self) -> float:
        """Processor time of the compile over that of the plain process."""
        return self.ours.cpu_s / self.plain.cpu_s

    @property
    def memory_ratio(self) -> float:
        """Peaks, likewise."""
        return self.ours.peak_mb / self.plain.peak_mb

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf8")

    @staticmethod
    def read(path: Path) -> Measured:
        """What `write` wrote."""
        data = json.loads(path.read_text(encoding="utf8"))
        row = data.pop("row")
        plain, ours = (process.Usage(**data.pop(name)) for name in ("plain", "ours"))
        return Measured(Row(**{**row, "flags": tuple(row["flags"])}), plain, ours, **data)


class FailedError(Exception):
    """A process of a row failed; the message ends with what it said last."""


def measured(row: Row, folder: Path, commit: str) -> Measured:
    """Makes what is not there yet, and measures.

    Args:
        row: What is asked.
        folder: For models, samples, caches and outputs.
        commit: What is measured.

    Raises:
        FailedError: a process did.
    """
    model, data = subject(row, folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    plain = _run(work, [sys.executable, "-m", "benchmarks.children.plain", str(model), str(data)])
    output = work / "out" / "model.qdq.onnx"
    command = [sys.executable, "-m", "qcompiler", "quantize", str(model), "--data", str(data), "-o", str(output)]
    extra = {"QCOMPILER_CACHE": str(folder / "caches" / row.cache) if row.cache else "off"}
    ours = _run(work, [*command, "--quiet", *row.flags], extra)
    manifest = json.loads((work / "out" / "model.manifest.json").read_text(encoding="utf8"))
    kept = {name: manifest[name] for name in KEPT}
    kept["share"] = manifest["macs"]["quantized_share"]
    kept["sqnr_db"] = (manifest["verification"] or {}).get("worst_sqnr_db")
    files = artefacts(work / "out")
    shutil.rmtree(work)
    return Measured(row, plain, ours, files, kept, datetime.now(UTC).date().isoformat(), machine(), commit)


def subject(row: Row, folder: Path) -> tuple[Path, Path]:
    """The model and its samples; both are made where they are not there yet."""
    if row.model not in SHAPES:
        return Path(row.model), Path(row.data)
    shape = SHAPES[row.model] if row.layers is None else SHAPES[row.model].deep(row.layers)
    place = folder / "models" / f"{row.model}.{shape.layers}"
    data = folder / "samples" / f"{row.model}.{row.samples}x{row.tokens}"
    sizes = ["--samples", str(row.samples), "--tokens", str(row.tokens)]
    if not (place / "model.onnx").exists():  # in another process: what this one holds counts for those that it starts
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "make",
            row.model,
            str(place),
            "--layers",
            str(shape.layers),
        ]
        subprocess.run([*command, *sizes], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    if not data.exists():
        command = [sys.executable, "-m", "benchmarks.scale", "texts", row.model, str(data)]
        subprocess.run([*command, *sizes], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return place / "model.onnx", data


def _run(folder: Path, command: list[str], extra: Mapping[str, str] | None = None) -> process.Usage:
    log = folder / "log"
    used = process.run(command, folder=folder, log=log, most_s=MOST_S, extra=extra or {})
    if used.code:
        said = log.read_text(encoding="utf8", errors="replace")[-2000:]
        raise FailedError(f"{' '.join(command[2:])} ended with {used.code} {used.error}\n{said}")
    return used
