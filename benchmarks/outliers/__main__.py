"""Outliers: what SmoothQuant, QFeM, FP8 and mixed precision are worth on models that need them.

    python -m benchmarks.outliers MODELS [ROW ...] [--glu DIR] [--cache DIR] [--only TEXT] [--again] [--no-engines]

Rows: glu, int8, fp8, decoder, cost (default: all). MODELS/NAME has model.onnx and load.py; --glu names a folder with
trained glu-lm and glu-lm-outlier (model.onnx, calib/, eval/), which are measured beside the generated ones. Each cell
is the command that a user types, in a process of its own: `qcompiler compile`, with the engine built and audited. What
has a result already is skipped, and docs/figures/outliers.md gets the tables of all there is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peers, process
from benchmarks.measure import Bench, BenchmarkError, measure
from benchmarks.outliers.cells import COST_MODELS, COST_SAMPLES, GLU, GLU_TRAINED, Case, cases
from benchmarks.outliers.report import ROWS, replace_tables
from benchmarks.results import machine
from benchmarks.subjects import Cell

DOCUMENT = peers.ROOT / "docs" / "figures" / "outliers.md"
GENERATED = 64  # sequences each for calibration and evaluation
KEPT = (
    "environment",
    "qcompiler",
    "macs",
    "verification",
    "timings",
    "peak_memory_mb",
    "warnings",
    "engine",
    "smooth_quant",
    "qfem",
)
COST = ("ours-unsmoothed", "ours-smoothed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; 0: done, 1: the benchmark could not go on, 130: interrupted (run it again to go on)."""
    options = _parser().parse_args(arguments)
    try:
        _measure_all(options)
    except (BenchmarkError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outliers", description="Models with outliers.")
    parser.add_argument("models", type=Path, metavar="MODELS", help="has NAME/model.onnx and NAME/load.py")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--glu", type=Path, metavar="DIR", help="has the trained glu-lm and glu-lm-outlier")
    parser.add_argument("--cache", type=Path, default=peers.CACHE / "outliers", metavar="DIR", help="for results")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name contains this")
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    parser.add_argument("--no-engines", action="store_true", help="quantize only: no engine, no audit")
    parser.add_argument(
        "--document", type=Path, default=DOCUMENT, metavar="FILE", help="default: docs/figures/outliers.md"
    )
    return parser


def _measure_all(options: argparse.Namespace) -> None:
    bench = Bench(options.models.resolve(), options.cache.resolve())
    rows = options.rows or ROWS
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise BenchmarkError(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for case in cases(trained=options.glu is not None):
        result = bench.cache / "cells" / f"{case.name}.json"
        if case.row not in rows or options.only not in case.name or (result.exists() and not options.again):
            continue
        found = _measure(bench, case, options.glu, engine=not options.no_engines)
        _write(result, found)
        print(_line(case, found), flush=True)
    if "cost" in rows:
        _cost(bench, options)
    print(f"{replace_tables(options.document, bench.cache)} cells in {options.document}")


def _cost(bench: Bench, options: argparse.Namespace) -> None:
    """Whole processes between plain passes, as the other benchmark measures them."""
    for model in COST_MODELS:
        for subject in COST:
            cell = Cell(model, subject, COST_SAMPLES, judged=False)
            result = bench.cache / "cost" / f"{cell.name}.json"
            if options.only in cell.name and (options.again or not result.exists()):
                outcome, _ = measure(bench, cell)
                outcome.write(result)
                print(f"{cell.name}: {outcome.like_for_like():.2f} × the plain process", flush=True)


def _measure(bench: Bench, case: Case, trained: Path | None, *, engine: bool) -> dict[str, Any]:
    """One cell; what goes wrong in the compiler is a result."""
    folder, data = _inputs(bench, case, trained)
    with tempfile.TemporaryDirectory(prefix="outliers-") as name:
        work = Path(name)
        recipe, out = work / "recipe.toml", work / ("out.engine" if engine else "out.qdq.onnx")
        recipe.write_text(case.toml(), encoding="utf8")
        command = [*_program(), "compile" if engine else "quantize", str(folder / "model.onnx"), "--data", str(data)]
        command += ["--samples", str(case.samples), "--recipe", str(recipe), "-o", str(out)]
        usage = process.run(command, folder=work, log=work / "log")
        found: dict[str, Any] = {"case": asdict(case), "machine": machine(), "usage": asdict(usage)}
        if usage.code or usage.error:
            lines = (work / "log").read_text(encoding="utf8", errors="replace").strip().splitlines()
            return {**found, "error": usage.error or (lines[-1] if lines else f"exit code {usage.code}")}
        found["manifest"] = _digest(json.loads(next(work.glob("*.json")).read_text(encoding="utf8")))
        found["worth"] = _worth(bench, folder, next(work.glob("*.qdq.onnx")))
    return found


def _program() -> list[str]:
    script = Path(sys.executable).with_name("qcompiler")
    return [str(script)] if script.exists() else [sys.executable, "-m", "qcompiler"]


def _inputs(bench: Bench, case: Case, trained: Path | None) -> tuple[Path, Path]:
    """The model's folder and its calibration samples."""
    if case.model in GLU_TRAINED and trained is not None:
        folder = trained.resolve() / case.model
    elif case.model in GLU:
        folder = _generated(bench.cache / "models" / case.model, case.model)
    else:
        return bench.model(case.model).parent, bench.samples(case.model, case.samples)
    if not (folder / "model.onnx").is_file():
        raise BenchmarkError(f"{folder} has no model.onnx; --glu names the folder above")
    return folder, folder / "calib"


def _generated(folder: Path, name: str) -> Path:
    """Writes a generated network and its sequences in a process of its own: this one must stay small."""
    if not (folder / "model.onnx").exists():
        code = "import sys; from benchmarks.children import write_glu; write_glu.main(*sys.argv[1:])"
        outliers = "planted" if name == GLU[1] else "none"
        command = [sys.executable, "-c", code, str(folder), outliers, str(GENERATED)]
        subprocess.run(command, cwd=peers.ROOT, check=True)
    return folder


def _worth(bench: Bench, folder: Path, quantized: Path) -> dict[str, Any]:
    """Metric and SQNR on the evaluation's feeds; the float metric is measured once."""
    known = bench.cache / "float" / f"{folder.name}.txt"
    answer = quantized.with_name("worth.json")
    has_task = (folder / "load.py").exists()
    python = str(bench.loader_python if has_task else sys.executable)
    command = [python, "-m", "benchmarks.children.worth", str(folder), str(quantized), str(answer)]
    if known.exists():
        command.append(known.read_text(encoding="utf8"))
    environment = {**os.environ, **process.QUIET}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:500]}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf8"))
    if "metric_float" in found:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(repr(found["metric_float"]), encoding="utf8")
    return found


def _digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the tables and later questions need of a manifest, which itself can be large."""
    found = {key: manifest[key] for key in KEPT if key in manifest}
    found["audit"] = {key: value for key, value in (manifest.get("audit") or {}).items() if key != "nodes"}
    found["shares"] = _shares(manifest.get("plan") or [])
    found["rules"] = _rules(manifest.get("plan") or [])
    return found


def _shares(plan: list[dict[str, Any]]) -> dict[str, float]:
    """Share of MACs by precision, over layers with a weight of their own: attention's products are not among them."""
    linear = [row for row in plan if row["macs"] and row["rule"] not in ("attention",)]
    total = sum(row["macs"] for row in linear)
    return {
        precision: sum(row["macs"] for row in linear if row["precision"] == precision) / total
        for precision in sorted({row["precision"] for row in linear})
    }


def _rules(plan: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Layers that did not become low precision, by rule."""
    found: dict[str, list[str]] = {}
    for row in plan:
        if row["macs"] and row["precision"].startswith(("fp16", "bf16", "fp32")):
            found.setdefault(row["rule"], []).append(row["node"])
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(found, indent=1), encoding="utf8")
    fresh.replace(path)


def _line(case: Case, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{case.name}: fails: {found['error']}"
    worth, manifest = found["worth"], found["manifest"]
    levels = [level for level in worth.get("sqnr_db", {}).values() if level is not None]
    metric = f", metric {worth['metric']:.4f} of {worth['metric_float']:.4f}" if "metric" in worth else ""
    shares = ", ".join(f"{share:.1%} {precision}" for precision, share in manifest["shares"].items())
    return f"{case.name}: SQNR {min(levels, default=float('nan')):.1f} dB{metric}, {shares}"


if __name__ == "__main__":
    sys.exit(main())
