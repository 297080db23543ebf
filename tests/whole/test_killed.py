"""A compilation that is killed at any moment: nothing half is left, and the next one ends in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcompiler.report.manifest import read
from tests.kit.cases import Case, prepared
from tests.kit.manifests import settled

pytestmark = pytest.mark.skipif(os.name == "nt", reason="nothing is killed as hard as by SIGKILL there")


def command(case: Case) -> list[str]:
    given = [str(case.source), "--data", str(case.data), "--target", "onnxruntime", "-o", str(case.out / "m.engine")]
    return [sys.executable, "-m", "qcompiler", "compile", *given]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "QCOMPILER_CACHE": str(cache)}


def killed_behind(case: Case, cache: Path, stage: str, pause: float) -> None:
    """Starts a compilation, and kills it some time behind the line that says that a stage is done."""
    with subprocess.Popen(command(case), env=environment(cache), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage}:"):
                break
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)


def test_what_follows_a_kill_ends_in_the_same_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    case, cache = prepared(tmp_path / "case", "conv"), tmp_path / "cache"
    subprocess.run(command(case), env=environment(tmp_path / "unused"), check=True, capture_output=True)
    whole = {path.name: path.read_bytes() for path in case.out.iterdir()}
    shown = settled(read(case.out / "m.manifest.json"))
    for path in case.out.iterdir():
        path.unlink()
    draw = random.Random(7)
    for stage in ("load", "observe", "calibrate", "decide", "verify"):
        killed_behind(case, cache, stage, draw.uniform(0.0, 0.3))
    done = subprocess.run(command(case), env=environment(cache), check=True, capture_output=True, text=True)
    assert "observe: kept from an earlier run" in done.stderr
    assert sorted(path.name for path in case.out.iterdir()) == sorted(whole)
    for name in ("m.engine", "m.qdq.onnx"):
        assert (case.out / name).read_bytes() == whole[name], name
    assert settled(read(case.out / "m.manifest.json")) == shown
