"""Memory of observing against that of the float model: many convolutions over a large picture.

    python -m benchmarks.observe_memory [--layers N] [--channels N] [--size N] [--feeds N]

The model is a chain of 3 x 3 convolutions with ReLU; the input of each one is observed, histogram and outliers. Each
way is a process of its own and its figure is the peak of its resident memory: the imports alone, the float model run
over the feeds, and the same feeds observed, at once and in parts. Last, the statistics of these two are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import process

LABELS = {
    "imports": "imports alone",
    "float": "float model",
    "whole": "observed, all tensors at once",
    "parts": "observed, in parts",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all ways and prints a table."""
    parser = argparse.ArgumentParser(description="Peak memory of observing.")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--feeds", type=int, default=4)
    parser.add_argument("--way", choices=[*LABELS, "same"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        from benchmarks.children import observed

        return observed.run(options.way, options.layers, options.channels, options.size, options.feeds)
    size = [f"--{name}={getattr(options, name)}" for name in ("layers", "channels", "size", "feeds")]
    print("| | peak MB | ÷ float | seconds | CPU seconds |\n|---|---|---|---|---|")
    reference = 0.0
    for way, label in LABELS.items():
        used = _measured(way, size)
        reference = used.peak_mb if way == "float" else reference
        ratio = f"{used.peak_mb / reference:.2f}" if reference else ""
        print(f"| {label} | {used.peak_mb:.0f} | {ratio} | {used.wall_s:.1f} | {used.cpu_s:.1f} |", flush=True)
    _measured("same", size)
    print("\nBoth ways of observing give equal statistics.")
    return 0


def _measured(way: str, size: Sequence[str]) -> process.Usage:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.observe_memory", f"--way={way}", *size]
        used = process.run(command, folder=Path(folder), log=log)
        if used.code:
            raise SystemExit(f"'{way}' ended with {used.code} {used.error}:\n{log.read_text(errors='replace')[-2000:]}")
        return used


if __name__ == "__main__":
    sys.exit(main())
