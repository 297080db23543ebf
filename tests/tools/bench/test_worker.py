"""The other end of a model's process: what it hands on, and what becomes of a process that fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.errors import DataError, EngineError, InternalError, ModelError
from qcompiler.tools.bench import worker as workers
from qcompiler.tools.bench.worker import Worker
from tests.kit.rewrite import model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("worker") / "m.onnx"
    onnx.save(model(("Relu", "x", "y"), inputs={"x": ("n", 4)}), found)
    return found


def worker(path: Path) -> Worker:
    return Worker("it", path, "onnxruntime", "cpu", 1)


def test_a_model_is_opened_and_run_and_its_process_is_gone_behind_the_block(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4), np.float32))
    with worker(path) as one:
        one.open()
        assert one.inputs == {"x": (np.dtype(np.float32), ("n", 4))}
        assert one.outputs["y"][0] == np.dtype(np.float32)
        assert len(one.infer(tmp_path / "x.npz", 2)) == 2
        assert one.peak_memory_mb is not None
        process = one._process
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL if os.name != "nt" else process.returncode is not None


def test_errors_of_the_process_are_raised_here_as_what_they_are(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 5), np.float32))
    with worker(path) as one:
        one.open()
        with pytest.raises(DataError, match=r"on x float32\[3, 5\]"):
            one.infer(tmp_path / "x.npz", 1)
    with worker(tmp_path / "none.onnx") as one, pytest.raises(ModelError, match=r"none\.onnx"):
        one.open()


def test_a_process_that_dies_is_an_engine_error_with_its_last_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHILD", "qcompiler.nothing_of_this_name")
    with worker(path) as one, pytest.raises(EngineError, match=r"exit code 1; .*nothing_of_this_name"):
        one.open()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_process_points_to_memory(path: Path) -> None:
    with worker(path) as one:
        one._process.kill()
        one._process.wait()
        with pytest.raises(EngineError, match="Out of memory is the usual cause"):
            one.open()


def test_types_and_errors_come_through_their_names() -> None:
    described = workers._described({"a": ["bfloat16", ["n", 2]], "b": [None, None]})
    assert described == {"a": (np.dtype(ml_dtypes.bfloat16), ("n", 2)), "b": (None, None)}
    assert isinstance(workers._error({"error": "NoSuchError", "text": "lost"}), InternalError)
