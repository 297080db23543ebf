from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler.engines.base import EngineFile, Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from tests.kit.graphs import Builder

Build = Callable[..., tuple[Path, EngineFile]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a graph with the real TensorRT-RTX: (model path, engine file)."""

    def run(graph: Builder, *profiles: Profile, sms: tuple[str, ...] = ("sm89",)) -> tuple[Path, EngineFile]:
        model = graph.save(tmp_path / "model.onnx")
        return model, TensorRTRTX(sms=sms).build(model, tmp_path / "model.engine", profiles)

    return run
