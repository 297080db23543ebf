"""Runs the cases in one process with the qcompiler that PYTHONPATH names: `python -m benchmarks.replay.child OUT`.

It uses the public names of the package alone, so that it runs unchanged before and after modules have moved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import qcompiler
from benchmarks.replay import language
from benchmarks.replay.cases import CASES, SUBJECTS, Case
from benchmarks.replay.compare import MODELS
from benchmarks.replay.models import Subject

OUTPUT = {"quantize": "m.qdq.onnx", "compile": "m.engine", "build": "m.engine"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Records all cases whose name matches `--only` below OUT; 1: the package is not the one that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay.child")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--tree", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not Path(qcompiler.__file__).resolve().is_relative_to(options.tree.resolve()):
        print(f"error: {qcompiler.__file__} is not in {options.tree}", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")
    for case in CASES:
        if re.search(options.only, case.name):
            started = time.perf_counter()
            told = record(case, options.out)
            print(f"{time.perf_counter() - started:6.1f} s  {case.name}: {told}", flush=True)
    return 0


def record(case: Case, out: Path) -> str:
    """Runs one case, keeps what it wrote and how it ended below `out`, and says the latter."""
    out = out.resolve()
    folder = out / case.name
    folder.mkdir(parents=True)
    source, subject = _model(case.model, out / MODELS)
    try:
        with contextlib.chdir(out / MODELS):  # a manifest says how data was named, so without folders
            said = _run(case, source, subject, folder)
    except Exception as error:  # a refusal is a result, and so is a defect
        told = str(error).replace(os.fspath(out), "OUT")
        said = {"error": type(error).__name__, "exit_code": getattr(error, "exit_code", None), "text": told}
    _write(folder / "outcome.json", said)
    return f"{said['error']} {said['exit_code']}" if "error" in said else "done"


def _run(case: Case, source: str, subject: Subject, folder: Path) -> dict[str, Any]:
    keywords: dict[str, Any] = {"recipe": qcompiler.Recipe.from_dict(case.recipe), **case.options}
    data = _data(case, subject)
    if data is not None:
        keywords["data"] = data
    if case.command in OUTPUT:
        keywords["output"] = folder / OUTPUT[case.command]
    result = getattr(qcompiler, case.command)(source, **keywords)
    if case.command not in OUTPUT:
        _write(folder / "result.json", result.to_json())
        return {"done": case.command}
    (folder / "plan.json").write_text(result.plan.to_json() + "\n", encoding="utf8")
    (folder / "m.report.html").unlink()
    if result.engine_path is not None:
        result.engine_path.unlink()  # the builder does not always write the same bytes; its listing is in the audit
    return {"done": case.command}


def _model(name: str, folder: Path) -> tuple[str, Subject]:
    """The name of a model's file in `folder`, written once, as the public functions take it."""
    subject = SUBJECTS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(subject.proto, str):
        (folder / f"{name}.py").write_text(subject.proto, encoding="utf8")
        return f"{name}.py:network", subject
    path = folder / f"{name}.onnx"
    if not path.exists():
        copy = onnx.ModelProto()
        copy.CopyFrom(subject.proto)
        onnx.save(copy, path, save_as_external_data=subject.external, location=f"{name}.data", size_threshold=0)
    return path.name, subject


def _data(case: Case, subject: Subject) -> Any:
    if case.data == "feeds":
        return list(subject.feeds)
    if case.data == "npz":
        path = Path(f"{case.model}.npz")
        np.savez(path, **{key: np.concatenate([one[key] for one in subject.feeds]) for key in subject.feeds[0]})  # type: ignore[arg-type]
        return path
    if case.data == "text":
        tokenizer, text = Path("tokenizer.json"), Path("text.txt")
        tokenizer.write_text(language.tokenizer(), encoding="utf8")
        text.write_text(language.text(), encoding="utf8")
        return qcompiler.Text(text, tokenizer, length=16)
    return "random" if case.data == "random" else None


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    sys.exit(main())
