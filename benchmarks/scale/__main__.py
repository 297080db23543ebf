"""What a compile takes as data and models grow, and what is left of one that was killed.

    python -m benchmarks.scale make llama-7b FOLDER     a model of that name with token ids to calibrate it with
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scale.llama import make
from benchmarks.scale.shape import SHAPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command."""
    parser = argparse.ArgumentParser(description="Scale: models and data that grow, and compiles that are killed.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write a model that is made up")
    making.add_argument("name", choices=sorted(SHAPES))
    making.add_argument("folder", type=Path)
    making.add_argument("--layers", type=int, help="instead of its own number of them")
    making.add_argument("--samples", type=int, default=8)
    making.add_argument("--tokens", type=int, default=128, help="of a sample")
    options = parser.parse_args(arguments)
    shape = SHAPES[options.name]
    shape = shape if options.layers is None else shape.deep(options.layers)
    print(f"{make(shape, options.folder, options.samples, options.tokens)}: {shape.parameters / 1e9:.3g} billion")
    return 0


if __name__ == "__main__":
    sys.exit(main())
