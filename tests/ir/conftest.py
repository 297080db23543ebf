"""Files that the tests of models read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[ModelProto], Path]:
    def store(model: ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return store
