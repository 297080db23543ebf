"""The protocol tables of language models: perplexity, precision, size, time and memory of every method.

    python -m benchmarks.language OUT --text DIR [--smollm2 DIR] [--model NAME ...] [--row NAME ...] [--form NAME ...]

DIR of `--text` has UTF-8 .txt files; of each, the first half trains the small models and calibrates, the last fifth is
what perplexity is measured on. `--smollm2` is the folder of its GGUF file. Models: gemma and mixtral, which are trained
here (minutes each, torch), and smollm2; each is exported by `qcompiler export`, without a cache (form whole) and with
one (form cache). Each cell is the command that a user types, `qcompiler quantize`, in a process of its own, directly
behind one plain pass of ONNX Runtime over the same samples; then perplexity in another process, then with `--engines`
(default for the small ones) `qcompiler build` with its audit. What has a result in OUT/cells is skipped, so a run may
be stopped at any time. OUT/tables.md gets the tables of all there is and, with `--document FILE`, that document too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.language.cells import BY_KEY, FLOAT, FORMS, MODELS, ROWS, SAMPLES, TRAINED, Cell, Row
from benchmarks.language.report import markdown, read_cells
from benchmarks.measure import BenchmarkError
from benchmarks.peers import ROOT
from benchmarks.report import put_between_marks
from benchmarks.results import machine

KEPT = ("environment", "qcompiler", "timings", "peak_memory_mb", "warnings", "qfem", "qfep")
OUTPUT = "out.qdq.onnx"
LINEAR_NOT = ("attention",)  # products of two activations are no linear layers


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; 0: done, 1: the benchmark could not go on, 130: interrupted (run it again to go on)."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the child, in a session of its own, would go on
    try:
        _measure_all(options)
    except (BenchmarkError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description="Tables of language models.")
    parser.add_argument("out", type=Path, metavar="OUT", help="for models, samples, results and tables")
    parser.add_argument("--text", type=Path, metavar="DIR", help="UTF-8 .txt files")
    parser.add_argument("--smollm2", type=Path, metavar="DIR", help="the folder with its .gguf file")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS), help="default: both")
    parser.add_argument("--row", nargs="+", choices=BY_KEY, metavar="ROW", help=f"of {', '.join(BY_KEY)}")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"calibration windows; for another OUT ({SAMPLES})"
    )
    parser.add_argument("--engines", action="store_true", help="engines for smollm2 too: minutes each")
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="locked while something is measured (flock)")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write the tables")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the tables between its marks, too")
    return parser


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells that are asked for and have no result yet, rows of one model after each other."""
    rows = options.row or [row.key for row in ROWS if not row.extra]
    cells = [Cell(model, form, row) for model in options.model for form in options.form for row in rows]
    return [cell for cell in cells if options.again or not _path(options.out, cell).exists()]


def _measure_all(options: argparse.Namespace) -> None:
    options.out = options.out.resolve()
    for cell in [] if options.report else wanted(options):
        place = Place(options, cell)
        place.prepare()
        found = _measure(place, BY_KEY[cell.row], engine=options.engines or cell.model in TRAINED)
        _write(_path(options.out, cell), {"cell": asdict(cell), "machine": machine(), **found})
        print(_line(cell, found), flush=True)
        _report(options)
    print(f"{_report(options)} cells in {options.out / 'tables.md'}")


class Place:
    """Where the model and the samples of a cell are; what is not there yet is made."""

    def __init__(self, options: argparse.Namespace, cell: Cell) -> None:
        """Looks at nothing yet."""
        self.cell, self.text, self.lock, self._gguf = cell, options.text, options.lock, options.smollm2
        root = options.out
        self.seen = root / "text"
        self.folder = root / "models" / cell.model / "folder"
        self.model = root / "models" / cell.model / cell.form / "model.onnx"
        self.count = options.samples
        self.samples = root / "samples" / f"{cell.model}-{cell.form}-{self.count}"

    def prepare(self) -> None:
        """Text, trained model, export, samples.

        Raises:
            BenchmarkError: `--text` or `--smollm2` is missing.
        """
        if self.text is None:
            raise BenchmarkError("--text DIR is needed to measure anything")
        self.text = self.text.resolve()
        if not self.seen.is_dir():
            self._run("-m", "benchmarks.children.language", "text", self.text, self.seen)
        if not self.model.exists():
            source = self._source()
            past = "--past" if self.cell.form == "cache" else "--no-past"
            with locked(self.lock):
                self._run("-m", "qcompiler", "export", source, past, "--quiet", "-o", self.model)
        if not self.samples.is_dir():
            aside = self.samples.with_name(f"{self.samples.name}.new")
            self._run("-m", "benchmarks.children.language", "samples", self.model, self.seen, aside, self.count)
            aside.rename(self.samples)

    def _source(self) -> Path:
        if self.cell.model not in TRAINED:
            if self._gguf is None:
                raise BenchmarkError("--smollm2 DIR is needed to export that model")
            return Path(self._gguf).resolve()
        if not (self.folder / "training.json").exists():
            with locked(self.lock):
                self._run("-m", "benchmarks.small_decoders", self.cell.model, self.seen, self.folder)
        return Path(self.folder)

    @staticmethod
    def _run(*arguments: object) -> None:
        # A process of its own: this one must stay small, see `process`.
        subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def _measure(place: Place, row: Row, *, engine: bool) -> dict[str, Any]:
    """One cell; what goes wrong in the compiler is a result."""
    with tempfile.TemporaryDirectory(prefix="language-", dir=place.model.parent) as name:
        work = Path(name)
        shutil.copyfile(place.model.parent / "tokenizer.json", work / "tokenizer.json")
        recipe = work / "recipe.toml"
        recipe.write_text(row.toml(), encoding="utf8")
        with locked(place.lock):
            found = _float(place, work) if row.key == FLOAT else _quantized(place, row, work)
        out = work / OUTPUT
        if engine and row.buildable and out.exists():
            with locked(place.lock):
                found["engine"] = _engine(out, place, recipe, work)
    return found


def _float(place: Place, work: Path) -> dict[str, Any]:
    found = {"plain": _plain(place, work), "bytes": _bytes(place.model)}
    return {**found, "worth": _worth(place.model, place, work)}


def _quantized(place: Place, row: Row, work: Path) -> dict[str, Any]:
    out = work / OUTPUT
    command = ["quantize", str(place.model), "--data", str(place.samples), "--recipe", str(work / "recipe.toml")]
    found: dict[str, Any] = {"recipe": row.toml(), "samples": place.count, "plain": _plain(place, work)}
    usage, error = _qcompiler([*command, "-o", str(out)], work)
    found["usage"] = asdict(usage)
    if error:
        return {**found, "error": error}
    manifest = json.loads((work / "out.manifest.json").read_text(encoding="utf8"))
    return {**found, "manifest": digest(manifest), "bytes": _bytes(out), "worth": _worth(out, place, work)}


def _plain(place: Place, work: Path) -> dict[str, Any]:
    """One pass of the float model over the samples, and no more."""
    answer = work / "plain.json"
    command = [sys.executable, "-m", "benchmarks.children.language", "plain", str(place.model), str(place.samples)]
    usage = process.run([*command, str(answer)], folder=work, log=work / "plain.log")
    if usage.code or usage.error:
        raise BenchmarkError(f"the float model does not run: {usage.error or _last(work / 'plain.log')}")
    return {**asdict(usage), **json.loads(answer.read_text(encoding="utf8"))}


def _qcompiler(command: list[str], work: Path) -> tuple[process.Usage, str]:
    log = work / "log"
    usage = process.run([sys.executable, "-m", "qcompiler", *command], folder=work, log=log)
    failed = usage.code or usage.error
    return usage, (usage.error or _last(log)) if failed else ""


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf8", errors="replace").strip().splitlines()
    return lines[-1][:800] if lines else "no message"


def _worth(model: Path, place: Place, work: Path) -> dict[str, Any]:
    answer = work / "worth.json"
    command = [sys.executable, "-m", "benchmarks.children.language", "worth", str(model), str(place.text), str(answer)]
    usage = process.run(command, folder=work, log=work / "worth.log")
    if usage.code or usage.error:
        return {"error": usage.error or _last(work / "worth.log")}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf8"))
    return {**found, "seconds": usage.wall_s}


def _engine(model: Path, place: Place, recipe: Path, work: Path) -> dict[str, Any]:
    """The engine and what its listing says."""
    command = ["build", str(model), "--data", str(place.samples), "--recipe", str(recipe)]
    usage, error = _qcompiler([*command, "-o", str(work / "engine.engine")], work)
    if error:
        return {"error": error}
    manifest = json.loads((work / "engine.manifest.json").read_text(encoding="utf8"))
    audit = {key: value for key, value in (manifest["audit"] or {}).items() if key != "nodes"}
    return {"audit": audit, "bytes": (work / "engine.engine").stat().st_size, "seconds": usage.wall_s}


def _bytes(model: Path) -> int:
    """With its external data."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.stem}*") if file.suffix in (".onnx", ".data"))


def digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the tables and later questions need of a manifest, which itself can be large."""
    found = {key: manifest[key] for key in KEPT if manifest.get(key) is not None}
    plan = [row for row in manifest.get("plan") or [] if row["macs"] and row["rule"] not in LINEAR_NOT]
    total = sum(row["macs"] for row in plan)
    shares: dict[str, float] = {}
    rules: dict[str, float] = {}
    for row in plan:
        shares[row["precision"]] = shares.get(row["precision"], 0.0) + row["macs"] / total
        if row["precision"].startswith(("fp16", "bf16", "fp32")):
            rules[row["rule"]] = rules.get(row["rule"], 0.0) + row["macs"] / total
    verification = manifest.get("verification") or {}
    return {**found, "shares": shares, "high_by_rule": rules, "sqnr_db": verification.get("worst_sqnr_db")}


@contextlib.contextmanager
def locked(file: Path | None) -> Iterator[None]:
    """Two measurements at once would measure each other."""
    if file is None:
        yield
        return
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _path(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(found, indent=1), encoding="utf8")
    fresh.replace(path)


def _report(options: argparse.Namespace) -> int:
    found = read_cells(options.out / "cells")
    tables = markdown(found)
    (options.out / "tables.md").write_text(tables, encoding="utf8")
    if options.document:
        put_between_marks(options.document, tables)
    return len(found)


def _line(cell: Cell, found: dict[str, Any]) -> str:
    error = found.get("error") or found.get("worth", {}).get("error")
    if error:
        return f"{cell.name}: fails: {error}"
    worth = found["worth"]
    shares = ", ".join(f"{share:.1%} {name}" for name, share in found.get("manifest", {}).get("shares", {}).items())
    return f"{cell.name}: perplexity {worth['perplexity']:.3f} ({worth['short']:.3f}), {shares or 'float'}"


if __name__ == "__main__":
    sys.exit(main())
