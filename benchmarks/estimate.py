"""What a compile was said to take beside what it took: seconds, runs of the model, memory and disk.

    python -m benchmarks.estimate [--samples N] MODEL.onnx=DATA ...

Each compile is a process of its own. Seconds are those of the machine as it is: where something else begins to run
beside it after the estimate, that is wrong by as much.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("model", "seconds", "took", "÷", "memory MB", "took", "÷", "disk MB", "took", "÷")


@dataclass(frozen=True)
class Told:
    """A figure that was told in advance, and what came.

    Attributes:
        told: before the start.
        came: at the end.
    """

    told: float
    came: float

    @property
    def factor(self) -> float:
        """By how much it was wrong, 1 or more, whichever way."""
        return max(self.told / self.came, self.came / self.told) if self.told > 0 and self.came > 0 else float("inf")


def figures(manifest: Mapping[str, Any], written: int) -> tuple[Told, Told, Told]:
    """Seconds, memory and disk in MB.

    Args:
        manifest: of a compile.
        written: bytes of its artefacts.
    """
    told = manifest["estimate"]
    return (
        Told(told["seconds"], sum(manifest["timings"].values())),
        Told(told["memory_bytes"] / 1e6, manifest["peak_memory_mb"] * (1 << 20) / 1e6),
        Told(told["disk_bytes"] / 1e6, written / 1e6),
    )


def row(name: str, found: Sequence[Told]) -> str:
    """A line of the table."""
    cells = (cell for one in found for cell in (f"{one.told:.3g}", f"{one.came:.3g}", f"{one.factor:.2f}"))
    return f"| {' | '.join((name, *cells))} |"


def compiled(model: str, data: str, samples: int | None) -> tuple[Told, Told, Told]:
    """Quantizes a model in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "m.onnx")
        command = [sys.executable, "-m", "qcompiler", "quantize", model, "--data", data, "-o", str(out), "--quiet"]
        command += [] if samples is None else ["--samples", str(samples)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        manifest = json.loads(out.with_suffix("").with_suffix(".manifest.json").read_text(encoding="utf8"))
        return figures(manifest, sum(path.stat().st_size for path in Path(folder).iterdir()))


def with_data(given: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Of each MODEL=DATA: a name, the model, and its data."""
    for one in given:
        model, _, data = one.partition("=")
        name = Path(model).parent.name if Path(model).stem == "model" else Path(model).stem
        yield name, model, data or "random"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where the seconds of one were wrong by more than a factor of two."""
    parser = argparse.ArgumentParser(description="Estimates beside what a compile took.")
    parser.add_argument("models", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--samples", type=int)
    options = parser.parse_args(arguments)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    worst = 1.0
    for name, model, data in with_data(options.models):
        found = compiled(model, data, options.samples)
        worst = max(worst, found[0].factor)
        print(row(name, found), flush=True)
    return int(worst > 2)


if __name__ == "__main__":
    sys.exit(main())
