from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime.session import Session
from qcompiler.verification.reading import read
from tests.kit.rewrite import doubling, model

C = np.array([1, -2, 3], np.float32)


def saved(folder: Path, *nodes: Any, opset: int) -> Path:
    path = folder / "model.onnx"
    onnx.save(model(*nodes, inputs={"x": ("n", 3, 2)}, weights={"c": C}, opset=opset), path)
    return path


def test_files_of_today_stay_as_they_are(tmp_path: Path) -> None:
    found = read(saved(tmp_path, ("Relu", "x", "y"), opset=7))
    assert found.graph.opset == 7
    assert read(found) is found


def test_older_files_are_taken_to_the_oldest_that_runs(tmp_path: Path) -> None:
    found = read(saved(tmp_path, ("Add", "x c", "y", {"broadcast": 1, "axis": 1}), opset=6))
    assert found.graph.opset == models.OLDEST_OPSET
    x = np.ones((2, 3, 2), np.float32)
    np.testing.assert_array_equal(Session(found).run({"x": x})["y"], x + C.reshape(3, 1))


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'Y' \(Dropout\) cannot be taken from opset 6 to 7: it trains") as caught:
        read(saved(tmp_path, ("Dropout", "x", "y"), opset=6))
    assert caught.value.exit_code == 3


def test_what_onnx_runtime_runs_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, ("Relu", "x", "y"), opset=6)
    assert read(path).graph.opset == 7
    doubling(monkeypatch, RaiseOpset)
    with pytest.raises(ModelError, match="uses opset 6, and what it means cannot be said in opset 7"):
        read(path)
