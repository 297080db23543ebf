"""What people bring from Hugging Face: thirty architectures with random weights, each through `qcompiler compile`.

    python -m benchmarks.architectures OUT [NAME ...] [--list] [--page docs/figures/architectures.md]

Each row writes a folder as `save_pretrained` leaves it (seeded weights, a tokenizer where text is read, a
preprocessor's sizes where pictures or sound are), data to calibrate, and other data to judge; then it runs the command
of a user, without a flag beyond the data. What becomes several files is exported first, and each file is compiled, with
what the files before it compute as its data. OUT gets a folder for each row and `NAME.json`; the table of all rows that
it holds is written to `OUT/architectures.md`, and between the marks of a page. Rows that have a JSON are not run again
unless they are named.

Weights are random, so figures say how the graph survives, not how a trained model would: channels of normalisations
differ in size and a few are far larger, as in trained ones, and rows of weights have scales of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import models
from benchmarks.architectures.models import MODELS, Model
from benchmarks.report import put_between_marks

SAMPLES, HELD = 24, 8
"""Samples to calibrate, and others to judge by."""
Feed = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs rows; 0: all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the rows")
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to run, again if need be (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--page", type=Path, help="a page whose marked part becomes the table")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(MODELS))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"there is no row '{unknown[0]}': {', '.join(MODELS)}")
    for name in options.names or [one for one in MODELS if not (options.out / f"{one}.json").is_file()]:
        row = run(name, options.out)
        (options.out / f"{name}.json").write_text(json.dumps(row, indent=1))
        print(line(row), flush=True)
    rows = [json.loads(path.read_text()) for one in MODELS if (path := options.out / f"{one}.json").is_file()]
    (options.out / "architectures.md").write_text(table(rows))
    if options.page:
        put_between_marks(options.page, table(rows))
    return 0 if all(row["passed"] for row in rows) else 1


def run(name: str, out: Path) -> dict[str, Any]:
    """One architecture: its folder, its data, the commands, and what they left."""
    model, place = MODELS[name], out / name
    place.mkdir(exist_ok=True)
    started = time.perf_counter()
    models.write(model, place / "model")
    try:
        found = _alone(model, place) if not model.parts else _as_set(model, place)
    except subprocess.CalledProcessError as error:
        lines = [one for one in str(error.output).splitlines() if one.startswith("error")] or ["no message"]
        found = {"passed": False, "code": error.returncode, "error": lines[0][:400], "engines": []}
    seconds = round(time.perf_counter() - started, 1)
    return {"name": name, "kind": model.kind, "seconds": seconds, **_circumstances(), **found}


def _circumstances() -> dict[str, Any]:
    """Day, the last commit that touched the package, and versions."""
    import onnx
    import onnxruntime
    import torch
    import transformers

    last = ["git", "log", "-1", "--format=%h", "--abbrev=7", "--", "qcompiler"]
    done = subprocess.run(last, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    versions = {one.__name__: one.__version__ for one in (torch, transformers, onnx, onnxruntime)}
    versions["tensorrt_rtx"] = version("tensorrt_rtx")
    return {"when": f"{datetime.now(UTC):%Y-%m-%d}", "commit": done.stdout.strip(), "versions": versions}


def _alone(model: Model, place: Path) -> dict[str, Any]:
    data = (
        _text(place) if model.text else _folders(place, models.feeds(model, SAMPLES, 0), models.feeds(model, HELD, 1))
    )
    command = ["compile", "model", *data, "-o", "out/model.engine"]
    _qcompiler(command, place)
    return {"passed": True, "commands": [_shown(command)], "engines": [_engine(place / "out" / "model")]}


def _as_set(model: Model, place: Path) -> dict[str, Any]:
    """Files of a set, in the order in which they feed each other."""
    first = ["export", "model", "-o", "onnx/model.onnx"]
    _qcompiler(first, place)
    described = json.loads((place / "onnx" / "model.set.json").read_text())
    commands, engines = [first], []
    calibration = [dict(one) for one in models.feeds(model, SAMPLES, 0)]
    held = [dict(one) for one in models.feeds(model, HELD, 1)]
    for part in described["parts"]:
        stem = Path(part["file"]).stem
        if not _multiplies(place / "onnx" / part["file"]):  # a table that tokens are looked up in is used as it is
            _handed_on(place / "onnx" / part["file"], part, described["feeds"], [*calibration, *held])
            continue
        data = _folders(place, [_for(part, one) for one in calibration], [_for(part, one) for one in held], f"{stem}_")
        command = ["compile", f"onnx/{part['file']}", *data, "-o", f"out/{stem}.engine"]
        _qcompiler(command, place)
        commands.append(command)
        engines.append(_engine(place / "out" / stem))
        _handed_on(place / "onnx" / part["file"], part, described["feeds"], [*calibration, *held])
    return {"passed": True, "commands": [_shown(one) for one in commands], "engines": engines}


def _multiplies(path: Path) -> bool:
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return any(node.op_type in ("Conv", "Gemm", "MatMul", "Einsum") for node in nodes)


def _for(part: Mapping[str, Any], feed: Feed) -> Feed:
    """What one part reads: of the sample, of the parts before it, and for the first step of a decoder no past."""
    found = {}
    for name, shape in part["inputs"].items():
        batch = next(iter(feed.values())).shape[0]
        if f"{part['name']}.{name}" in feed:
            found[name] = feed[f"{part['name']}.{name}"]
        elif name in feed:
            found[name] = feed[name]
        elif name == "encoder_attention_mask":
            found[name] = feed["attention_mask"]
        elif name == "position_ids":
            found[name] = np.arange(feed["input_ids"].shape[1])[None]
        elif name.startswith("past_key_values"):
            sizes = [size if isinstance(size, int) else batch if size == "batch" else 0 for size in shape]
            found[name] = np.zeros(sizes, np.float32)
        else:
            raise KeyError(f"nothing feeds '{name}' of {part['file']}")
    return found


def _handed_on(path: Path, part: Mapping[str, Any], links: Sequence[Mapping[str, str]], feeds: Sequence[Any]) -> None:
    """Computes in float what later parts read of this one, and adds it to the samples."""
    import onnxruntime

    mine = [one for one in links if one["from"] == part["name"] and one["to"] != part["name"]]
    if not mine:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = sorted({one["output"] for one in mine})
    for feed in feeds:
        got = dict(zip(wanted, session.run(wanted, dict(_for(part, feed))), strict=True))
        for one in mine:
            key, made = f"{one['to']}.{one['input']}", got[one["output"]]
            feed[key] = _joined(feed[key], made) if key in feed else made


def _joined(features: Any, embeds: Any) -> Any:
    """Embeddings of a text behind its first token of which a picture stands: its features in the places of tokens."""
    made, rows = np.array(embeds), features.reshape(-1, embeds.shape[-1])
    made[:, 1 : 1 + len(rows)] = rows
    return made


def _text(place: Path) -> list[str]:
    for name, seed in (("calibration", 0), ("held", 1)):
        (place / f"{name}.txt").write_text(models.prose(3000, seed))
    return ["--text", "calibration.txt", "--length", "64", "--verify-text", "held.txt"]


def _folders(place: Path, calibration: Any, held: Any, prefix: str = "") -> list[str]:
    for name, feeds in (("calibration", calibration), ("held", held)):
        folder = place / f"{prefix}{name}"
        folder.mkdir(exist_ok=True)
        for index, feed in enumerate(feeds):
            np.savez(folder / f"{index:02}.npz", **feed)
    return ["--data", f"{prefix}calibration", "--verify-data", f"{prefix}held"]


def _qcompiler(command: Sequence[str], place: Path) -> None:
    """Runs it as a user would.

    Raises:
        CalledProcessError: it ended with another exit code than 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", "qcompiler", *command, "--quiet"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    (place / f"{command[0]}.log").write_text(done.stdout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)


def _engine(stem: Path) -> dict[str, Any]:
    manifest = json.loads(stem.with_name(f"{stem.name}.manifest.json").read_text())
    seen, audit = manifest.get("verification") or {}, manifest.get("audit") or {}
    return {
        "file": stem.name,
        "share": (manifest.get("macs") or {}).get("quantized_share"),
        "worst_db": seen.get("worst_sqnr_db"),
        "verdict": (manifest.get("verdict") or {}).get("verdict"),
        "audit": [audit.get("confirmed"), audit.get("promised")] if audit else None,
        "mib": round(stem.with_name(f"{stem.name}.engine").stat().st_size / 2**20, 2),
    }


def _shown(command: Sequence[str]) -> str:
    return " ".join(("qcompiler", *command))


def line(row: Mapping[str, Any]) -> str:
    """A row of the page."""
    cells = [row["name"], row["kind"]]
    if not row["passed"]:
        return " | ".join(
            ("", *cells, f"no: exit {row['code']}", *5 * ("",), row["error"].replace("|", "/"), "")
        ).strip()
    engines = row["engines"]
    cells += ["yes" if len(engines) == 1 else f"{len(engines)} files"]
    cells += ["<br>".join(_percent(one["share"]) for one in engines)]
    cells += ["<br>".join(_decibel(one["worst_db"]) for one in engines)]
    cells += ["<br>".join(one["verdict"] or "–" for one in engines)]
    cells += ["<br>".join(f"{one['mib']} MiB" for one in engines)]
    cells += ["<br>".join("–" if not one["audit"] else "{} of {}".format(*one["audit"]) for one in engines)]
    cells += ["<br>".join(f"`{one}`" for one in row["commands"])]
    return " | ".join(("", *cells, "")).strip()


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _decibel(figure: Any) -> str:
    return "–" if figure is None else "equal" if figure == "inf" else f"{float(figure):.1f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows, and when and with what they were measured."""
    passed = sum(bool(row["passed"]) for row in rows)
    head = ["architecture", "kind", "exported", "INT8 share", "dB, worst view", "verdict", "engine", "audit", "command"]
    about = (
        f"**{passed} of {len(rows)}** went from the folder to the engine without a flag beyond the data. {_when(rows)}"
    )
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(line(row) for row in rows)]
    return "\n".join(("", f"{about}\n", *lines, ""))


def _when(rows: Sequence[Mapping[str, Any]]) -> str:
    days, told = sorted({row["when"] for row in rows}), []
    for commit in dict.fromkeys(row["commit"] for row in rows):
        names = [row["name"] for row in rows if row["commit"] == commit]
        told.append((f"{commit} ({', '.join(names)})" if len(names) < len(rows) else commit, len(names)))
    commits = "; ".join(text for text, _ in sorted(told, key=lambda one: -one[1]))
    versions = dict.fromkeys(f"{name} {found}" for row in rows for name, found in row["versions"].items())
    return f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} at {commits}, with {', '.join(versions)}."


if __name__ == "__main__":
    sys.exit(main())
