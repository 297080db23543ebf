"""The command line: `python -m benchmarks peers | samples | run | matrix | report`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import peers, report
from benchmarks.measure import Bench, BenchmarkError, measure
from benchmarks.results import Outcome, Run
from benchmarks.subjects import SUBJECTS, Cell, matrix

DOCUMENT = peers.ROOT / "docs" / "figures" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0: done, 1: the benchmark could not go on, 130: interrupted (run it again to go on)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (BenchmarkError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="qcompiler beside other quantizers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    install = commands.add_parser("peers", help="make the peers' environments ($QCOMPILER_PEERS or .cache/peers)")
    install.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(peers.PEERS)} (default: all)")
    install.set_defaults(run=_peers)

    samples = commands.add_parser("samples", help="write the samples of the matrix")
    _places(samples)
    samples.set_defaults(run=_samples)

    one = commands.add_parser("run", help="measure one cell, again if need be")
    _places(one)
    one.add_argument("model", help="folder below --models")
    one.add_argument("subject", choices=SUBJECTS, metavar="QUANTIZER", help=", ".join(SUBJECTS))
    one.add_argument("--samples", type=int, default=64, metavar="N", help="feeds of batch 1 (default: 64)")
    one.add_argument("--repeats", type=int, default=1, metavar="N", help="default: 1")
    one.add_argument("--unjudged", action="store_true", help="no accuracy, no latency")
    one.set_defaults(run=_one)

    everything = commands.add_parser("matrix", help="measure all cells that have no result yet, then write the tables")
    _places(everything)
    everything.add_argument("--only", default="", metavar="TEXT", help="cells whose name contains this")
    everything.add_argument("--again", action="store_true", help="also cells that have a result")
    everything.add_argument("--list", action="store_true", help="name the cells and stop")
    everything.set_defaults(run=_matrix)

    tables = commands.add_parser("report", help="write the tables into docs/figures/benchmarks.md")
    tables.add_argument("--cache", type=Path, default=peers.CACHE / "benchmarks", metavar="DIR", help="see `run`")
    tables.add_argument(
        "--document", type=Path, default=DOCUMENT, metavar="FILE", help="default: docs/figures/benchmarks.md"
    )
    tables.set_defaults(run=_report)
    return parser


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        type=Path,
        required=True,
        metavar="DIR",
        help="has NAME/model.onnx and NAME/load.py, and their .venv",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=peers.CACHE / "benchmarks",
        metavar="DIR",
        help="for samples and results (default: .cache/benchmarks)",
    )


def _peers(options: argparse.Namespace) -> None:
    unknown = [name for name in options.names if name not in peers.PEERS]
    if unknown:
        raise BenchmarkError(f"there is no peer {', '.join(unknown)}; there are {', '.join(peers.PEERS)}")
    peers.install(options.names or peers.PEERS)


def _samples(options: argparse.Namespace) -> None:
    _write_samples(_bench(options), matrix())


def _write_samples(bench: Bench, cells: list[Cell]) -> None:
    """The most that any cell needs, all before anything is measured."""
    for model in dict.fromkeys(cell.model for cell in cells):
        bench.samples(model, max(cell.samples for cell in cells if cell.model == model))


def _one(options: argparse.Namespace) -> None:
    cell = Cell(options.model, options.subject, options.samples, options.repeats, not options.unjudged)
    with _alone(options.cache):
        _measure(_bench(options), cell, None)


def _matrix(options: argparse.Namespace) -> None:
    cells = [cell for cell in matrix() if options.only in cell.name]
    wanted = [cell for cell in cells if options.again or not _path(options.cache, cell).exists()]
    if options.list:
        print("\n".join(cell.name for cell in wanted))
        return
    bench = _bench(options)
    with _alone(options.cache):
        _write_samples(bench, wanted)
        _warm_up(wanted)
        shared: dict[tuple[str, int], Run] = {}
        for cell in wanted:
            last = _measure(bench, cell, shared.get((cell.model, cell.samples)))
            # Only the very last pass may serve the next cell: it has to be a neighbour in time.
            shared = {(cell.model, cell.samples): last} if not cell.judged else {}
    _say_report(options.cache, DOCUMENT)


def _warm_up(cells: list[Cell]) -> None:
    """Imports every peer once, so that the first cell does not pay for a cold disk; also says what is missing."""
    for name in dict.fromkeys(SUBJECTS[cell.subject].peer for cell in cells):
        if not name:
            continue
        if not peers.ready(name):
            raise BenchmarkError(f"the environment of {name} is not there: python -m benchmarks peers {name}")
        command = [str(peers.python(name)), "-m", f"benchmarks.children.{name}"]
        subprocess.run(command, cwd=peers.ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _measure(bench: Bench, cell: Cell, before: Run | None) -> Run:
    outcome, last = measure(bench, cell, before)
    outcome.write(_path(bench.cache, cell))
    print(_line(outcome), flush=True)
    return last


def _line(outcome: Outcome) -> str:
    if not outcome.ok:
        return f"{outcome.cell.name}: fails: {outcome.remarks[0]}"
    found = outcome.evaluation or {}
    worth = f", metric {found['metric']:.4f} of {found['metric_float']:.4f}" if "metric" in found else ""
    levels = [level for level in found.get("sqnr_db", {}).values() if level is not None]
    noise = f", SQNR {min(levels):.1f} dB" if levels else ""
    low, high = outcome.spread()
    remarks = f" [{'; '.join(outcome.remarks)}]" if outcome.remarks else ""
    return (
        f"{outcome.cell.name}: {outcome.wall_s():.2f} s, {outcome.like_for_like():.2f} × the plain process, "
        f"{outcome.to_pass():.2f} × the pass ({low:.2f} to {high:.2f}), {outcome.peak_mb():.0f} MB, "
        f"{outcome.peak_ratio():.2f} ×{worth}{noise}{remarks}"
    )


def _report(options: argparse.Namespace) -> None:
    _say_report(options.cache, options.document)


def _say_report(cache: Path, document: Path) -> None:
    count = report.replace_results(document, cache / "results")
    print(f"{count} cells in {document}")


def _bench(options: argparse.Namespace) -> Bench:
    return Bench(options.models.resolve(), options.cache.resolve())


def _path(cache: Path, cell: Cell) -> Path:
    return cache.resolve() / "results" / f"{cell.name}.json"


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Two measurements at once would measure each other."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError(f"another benchmark is running on {cache}") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
