"""`make demo`: a real OCR recogniser becomes an INT8 TensorRT-RTX engine, without a GPU, and still reads.

Fetches the model and the text, draws lines to read, runs the command line as anybody would, and sums up its manifest.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx

from demo import drawing, lines, packages

MODEL = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
CALIBRATION, HELDOUT = 128, 120  # lines
ENGINE = lines.FOLDER / "ocr.engine"


def main() -> int:
    """Runs everything; the exit code is that of `qcompiler compile`."""
    began = time.perf_counter()
    print("fetching the recogniser and the text (once) ...", flush=True)
    model = packages.member("rapidocr-onnxruntime", MODEL, "ppocr_rec.onnx")
    print(f"drawing {CALIBRATION} lines to calibrate with and {HELDOUT} others to judge by ...", flush=True)
    write_characters(model, lines.FOLDER / "characters.txt")
    write_lines(lines.FOLDER / "calibration", CALIBRATION, half=0)
    write_lines(lines.FOLDER / "heldout", HELDOUT, half=1)

    command = [
        *("qcompiler", "compile", relative(model)),
        *("--data", "demo/lines.py:calibration"),
        *("--metric", "demo/lines.py:accuracy"),
        *("-o", relative(ENGINE)),
    ]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run([*launcher(), *command[1:]], cwd=packages.REPOSITORY, check=False)
    if done.returncode:
        return done.returncode
    manifest = json.loads(ENGINE.with_name("ocr.manifest.json").read_text(encoding="utf8"))
    print(summary(manifest, model.stat().st_size, time.perf_counter() - began))
    return 0


def write_characters(model: Path, target: Path) -> None:
    """The model carries its alphabet in its metadata, one character a line."""
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    target.write_text(metadata["character"], encoding="utf8", newline="\n")


def write_lines(folder: Path, count: int, *, half: int) -> None:
    """Draws `count` lines of one half of the articles, with their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for index in range(count):
        image, text = drawing.line(2 * index + half)
        image.save(folder / f"{index:04}.png")
        texts.append(text)
    (folder / "labels.txt").write_text("\n".join(texts) + "\n", encoding="utf8")


def launcher() -> list[str]:
    """The command that was installed beside this Python, whatever PATH says."""
    script = Path(sys.executable).parent / "qcompiler"
    if script.exists():
        return [str(script)]
    if importlib.util.find_spec("qcompiler") is None:
        raise SystemExit("qcompiler is not installed here: use 'make demo'")
    return [sys.executable, "-m", "qcompiler"]


def summary(manifest: dict[str, Any], float_bytes: int, seconds: float) -> str:
    """The figures that people ask for first, one a line."""
    score = manifest["verification"]["score"]
    audit = manifest["audit"]
    engine = manifest["engine"]
    quantized = manifest["files"]["qdq"]["bytes"]
    stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in manifest["timings"].items() if taken >= 0.5)
    mismatches = [f"    {one['node']}: {one['text']}" for one in audit["mismatches"]]
    rows = (
        (
            "accuracy",
            f"float {score['float_score']:.4f}, INT8 {score['quantized_score']:.4f} ({HELDOUT} held-out lines)",
        ),
        ("in INT8", f"{manifest['macs']['quantized_share']:.1%} of the multiply-accumulates"),
        ("engine says", f"{audit['confirmed']} of {audit['promised']} INT8 nodes confirmed in its own listing"),
        ("sizes", f"float {_mb(float_bytes)}, INT8 ONNX {_mb(quantized)}, engine {_mb(engine['bytes'])}"),
        ("seconds", f"{seconds:.0f} in all ({stages})"),
        ("report", relative(ENGINE.with_name("ocr.report.html"))),
        ("engine", relative(ENGINE)),
    )
    return "\n".join(["", *(f"{name:>12}  {text}" for name, text in rows), *mismatches])


def relative(path: Path) -> str:
    """The path as seen from the repository, where the command runs."""
    return str(path.relative_to(packages.REPOSITORY)) if path.is_relative_to(packages.REPOSITORY) else str(path)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
