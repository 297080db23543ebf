"""What a compile takes as data and models grow, and what is left of one that was killed.

python -m benchmarks.scale make llama-7b FOLDER     a model of that name with token ids to calibrate it with
    python -m benchmarks.scale kills OUT [FLAG ...]     a compile that is ended at random moments and asked again
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import Signals

from benchmarks.scale.kills import SIGNALS, Killing, moments
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
    killing = commands.add_parser("kills", help="end compiles at random moments and ask them again")
    killing.add_argument("out", type=Path, help="folder of the results")
    killing.add_argument("--signal", choices=[how.name for how in SIGNALS], default="SIGKILL")
    killing.add_argument("--count", type=int, default=30)
    killing.add_argument("--seed", type=int, default=0)
    killing.add_argument("--suffix", default=".qdq.onnx", help="of the output")
    killing.add_argument("flags", nargs="+", metavar="FLAG", help="behind --: of qcompiler, without -o")
    options = parser.parse_args(arguments)
    if options.command == "kills":
        return _kills(options)
    return _make(options)


def _make(options: argparse.Namespace) -> int:
    shape = SHAPES[options.name]
    shape = shape if options.layers is None else shape.deep(options.layers)
    print(f"{make(shape, options.folder, options.samples, options.tokens)}: {shape.parameters / 1e9:.3g} billion")
    return 0


def _kills(options: argparse.Namespace) -> int:
    """1 where one was not as it should be; the results so far are in OUT/kills.SIGNAL.json at any time."""
    options.out.mkdir(parents=True, exist_ok=True)
    killing = Killing(options.flags, options.out.resolve(), options.suffix)
    killing.undisturbed()
    print(f"undisturbed: {killing.cpu_s:.1f} CPU s", flush=True)
    found = []
    for moment in moments(options.count, options.seed):
        one = killing.ended(moment, Signals[options.signal])
        found.append(one)
        faults = "; ".join(one.faults) or "as it should be"
        print(f"{moment:.2f}: {one.code}, {len(one.reused)} of {one.kept} kept reused, {faults}", flush=True)
        record = {"cpu_s": killing.cpu_s, "flags": options.flags, "moments": [each.to_json() for each in found]}
        (options.out / f"kills.{options.signal}.json").write_text(json.dumps(record, indent=1) + "\n", "utf8")
    return int(any(list(one.faults) for one in found))


if __name__ == "__main__":
    sys.exit(main())
