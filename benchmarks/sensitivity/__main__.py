"""How well the estimates of `qcompiler sensitivity` rank layers, and what they cost beside a plain run of the data.

    python -m benchmarks.sensitivity [--formats int8,fp8] MODEL.onnx=DATA ...        DATA: a folder of .npz files

For each model three processes: ONNX Runtime over all samples, `sensitivity`, and `sensitivity --exact`, which runs
every layer alone on all samples. Ranks are those of the outputs' figures, Spearman's correlation. Times are of the
whole process, CPU seconds: those of the clock depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import run

COLUMNS = ("model", "groups", "samples", "format", "rank correlation", "promised", "estimate ÷ plain", "exact ÷ plain")


@dataclass(frozen=True)
class Studied:
    """What one process of `sensitivity` gave.

    Attributes:
        found: its JSON.
        cpu_s: CPU seconds of the process.
    """

    found: Mapping[str, Any]
    cpu_s: float


def correlation(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> float:
    """Rank correlation of the outputs' figures of two studies in one format, -1..1."""
    figures = [
        {group["activation"]: float(group["effects"][name]["outputs_db"]) for group in found["groups"]}
        for found in (one, other)
    ]
    order = sorted(figures[0])
    first, second = (_ranks([row[key] for key in order]) for row in figures)
    middle = (len(order) - 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    scale = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return product / scale**0.5 if scale else 1.0


def _ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share theirs."""
    return [sum(other < one for other in values) + (sum(other == one for other in values) - 1) / 2 for one in values]


def rows(name: str, plain_s: float, estimate: Studied, exact: Studied) -> list[str]:
    """Lines of the table, one a format."""
    measured, lines = estimate.found["measured"], []
    for one in (row["format"] for row in estimate.found["formats"]):
        promised = measured["rank_correlation"][one]
        cells = (
            name,
            str(len(estimate.found["groups"])),
            f"{measured['samples']} of {measured['of']}",
            one,
            f"{correlation(estimate.found, exact.found, one):.3f}",
            "–" if promised is None else f"{promised:.3f}",
            f"{estimate.cpu_s / plain_s:.1f}",
            f"{exact.cpu_s / plain_s:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def studied(model: str, data: str, formats: str, *more: str) -> Studied:
    """Runs `sensitivity` in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "qcompiler", "sensitivity", model, "--data", data, "--formats", formats]
    text, cpu_s = _measured([*command, "--json", "--quiet", *more])
    return Studied(json.loads(text), cpu_s)


def _measured(command: Sequence[str]) -> tuple[str, float]:
    """What a process prints, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        usage = run(command, folder=Path(folder), log=log)
        text = log.read_text(encoding="utf8")
        if usage.code:
            raise subprocess.CalledProcessError(usage.code, list(command), text)
        return text, usage.cpu_s


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="rank correlation and cost of `qcompiler sensitivity`")
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx=DATA")
    parser.add_argument("--formats", default="int8,fp8")
    asked = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for one in asked.models:
        model, _, data = one.partition("=")
        model, data = str(Path(model).resolve()), str(Path(data).resolve())
        _, plain_s = _measured([sys.executable, "-m", "benchmarks.children.plain", model, data])
        found = (studied(model, data, asked.formats, *more) for more in ((), ("--exact",)))
        print("\n".join(rows(Path(model).parent.name, plain_s, *found)), flush=True)


if __name__ == "__main__":
    main()
