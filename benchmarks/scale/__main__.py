"""What a compile takes as data and models grow, and what is left of one that was killed.

    python -m benchmarks.scale measure OUT STUDY ...          rows that have no result yet, then the report
    python -m benchmarks.scale kills OUT -- quantize ...      a compile that is ended at random moments and asked again
    python -m benchmarks.scale report OUT [--page FILE]       tables and plots of what was measured
    python -m benchmarks.scale make NAME FOLDER               a made-up model with token ids to calibrate it with

Studies: data, depth (how time and memory grow), memory (64 and 4096 samples), second (another compile after the first),
workers, stacks; on request large (1.66 and 3.3 GB) and llama-7b (13 GB), which take as much disk. Another model takes
part with `--model PATH=DATA`. What stands behind `--` goes to every compile, such as `-- --max-memory 6GB`. Each
compile is a process of its own, directly behind a process that only runs the float model over the same samples.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import ROOT
from benchmarks.scale.rows import ENTROPY, STUDIES, Row
from benchmarks.scale.shape import SHAPES

if TYPE_CHECKING:
    from benchmarks.scale.kills import Killing

USUAL = ("data", "depth", "memory", "second", "workers", "stacks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0: done, 1: something is not as it should be, 130: interrupted (run it again to go on)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = _parser()
    options = parser.parse_args(own)
    unknown = [study for study in getattr(options, "studies", ()) if study not in STUDIES]
    if unknown:
        parser.error(f"no study is called {', '.join(unknown)}: there are {', '.join(STUDIES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the child, in a session of its own, would go on
    try:
        return int(options.run(options, tuple(flags)))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="How a compile scales.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, work in (("make", _make), ("texts", _texts)):
        making = commands.add_parser(name, help="write a made-up model, or only token ids for it")
        making.add_argument("name", choices=sorted(SHAPES))
        making.add_argument("folder", type=Path)
        making.add_argument("--layers", type=int, help="instead of its own number of them")
        making.add_argument("--samples", type=int, default=8)
        making.add_argument("--tokens", type=int, default=128, help="of a sample")
        making.set_defaults(run=work)
    measuring = commands.add_parser("measure", help="measure rows that have no result yet")
    measuring.add_argument("out", type=Path, help="folder for models, samples and results")
    measuring.add_argument("studies", nargs="*", metavar="STUDY", help="default: those that fit everywhere")
    measuring.add_argument("--row", nargs="+", help="only these of them")
    measuring.add_argument("--model", nargs="+", default=[], metavar="PATH=DATA", help="entropy calibration of others")
    measuring.add_argument("--samples", type=int, default=512, help="of --model; DATA has at least as many")
    measuring.add_argument("--as", dest="label", default="", help="name of rows with other flags")
    measuring.add_argument("--page", type=Path, help="the document whose tables are written, too")
    measuring.set_defaults(run=_measure)
    killing = commands.add_parser("kills", help="end compiles at random moments and ask them again")
    killing.add_argument("out", type=Path, help="folder of the results")
    killing.add_argument("--signal", choices=("SIGKILL", "SIGINT", "SIGTERM"), default="SIGKILL")
    killing.add_argument("--count", type=int, default=30)
    killing.add_argument("--seed", type=int, default=0)
    killing.add_argument("--suffix", default=".qdq.onnx", help="of the output")
    killing.add_argument("--as", dest="label", default="", help="name of the result")
    killing.set_defaults(run=_kills)
    reporting = commands.add_parser("report", help="tables and plots of all results")
    reporting.add_argument("out", type=Path)
    reporting.add_argument("--page", type=Path, help="the document between whose marks they go")
    reporting.set_defaults(run=_report)
    return parser


def _make(options: argparse.Namespace, _: tuple[str, ...]) -> int:
    from benchmarks.scale.llama import make

    shape = SHAPES[options.name]
    shape = shape if options.layers is None else shape.deep(options.layers)
    print(f"{make(shape, options.folder, options.samples, options.tokens)}: {shape.parameters / 1e9:.3g} billion")
    return 0


def _texts(options: argparse.Namespace, _: tuple[str, ...]) -> int:
    from benchmarks.scale.llama import texts

    texts(SHAPES[options.name], options.folder, options.samples, options.tokens)
    return 0


def asked(options: argparse.Namespace, flags: tuple[str, ...]) -> list[Row]:
    """The rows of a command line."""
    studies = options.studies or ([] if options.model else USUAL)
    rows = [row for study in studies for row in STUDIES[study] if not options.row or row.name in options.row]
    for one in options.model:
        path, _, data = one.partition("=")
        name = Path(path).parent.name if Path(path).stem == "model" else Path(path).stem
        rows.append(Row("entropy", name, path, options.samples, flags=ENTROPY, data=data))
    return [row.flagged(flags, options.label) for row in rows]


def _measure(options: argparse.Namespace, flags: tuple[str, ...]) -> int:
    from benchmarks.scale.measured import FailedError, measured

    out = options.out.resolve()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    failed = False
    for row in asked(options, flags):
        path = out / "rows" / f"{row.key}.json"
        if path.exists():
            continue
        try:
            found = measured(row, out, commit.strip())
        except FailedError as error:
            print(f"{row.key}: {error}", flush=True)
            failed = True
            continue
        found.write(path)
        print(
            f"{row.key}: {found.ours.cpu_s:.1f} CPU s ({found.time_ratio:.1f} x plain), {found.ours.peak_mb:.0f} MB "
            f"({found.memory_ratio:.2f} x), {found.ours.written_mb:.0f} MB written",
            flush=True,
        )
    _report(options, ())
    return int(failed)


def _kills(options: argparse.Namespace, flags: tuple[str, ...]) -> int:
    """The results so far are in OUT/kills.NAME.json at any time."""
    from benchmarks.scale.kills import Killing

    options.out.mkdir(parents=True, exist_ok=True)
    how = signal.Signals[options.signal]
    with closing(Killing(flags, options.out.resolve() / "killed", options.suffix)) as killing:
        return _ended(killing, options, how, flags)


def _ended(killing: Killing, options: argparse.Namespace, how: signal.Signals, flags: tuple[str, ...]) -> int:
    from benchmarks.scale.kills import moments

    killing.undisturbed()
    print(f"undisturbed: {killing.cpu_s:.1f} CPU s", flush=True)
    found = []
    for moment in moments(options.count, options.seed):
        one = killing.ended(moment, how)
        found.append(one)
        faults = "; ".join(one.faults) or "as it should be"
        print(f"{moment:.2f}: {one.code}, {len(one.reused)} stages reused ({one.kept} kept), {faults}", flush=True)
        record = {
            "name": options.label or options.signal,
            "cpu_s": killing.cpu_s,
            "flags": flags,
            "moments": [each.to_json() for each in found],
        }
        path = options.out / f"kills.{options.label or options.signal}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    return int(any(list(one.faults) for one in found))


def _report(options: argparse.Namespace, _: tuple[str, ...]) -> int:
    command = [sys.executable, "-m", "benchmarks.scale.report", str(options.out)]  # it draws, which takes memory
    if options.page is not None:
        command.append(str(options.page))
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
