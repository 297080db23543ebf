"""Commands that are replaced by recorders, and models to give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kit import manifests

Call = dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Replaces the three commands that take long; each records how it was called."""
    made: list[Call] = []

    def command(name: str) -> Callable[..., SimpleNamespace]:
        def run(source: str, **options: Any) -> SimpleNamespace:
            made.append({"command": name, "source": source, **options})
            with options["progress"].stage("observe", 3) as stage:
                stage.advance()
            record = manifests.build(source=None, recipe=options["recipe"], warnings=["watch out"])
            return SimpleNamespace(manifest=record, engine_path=Path("out/m.engine"), qdq_path=None)

        return run

    for place in ("compile.compile", "compile.quantize", "build.build"):
        monkeypatch.setattr(f"qcompiler.compiler.{place}", command(place.rpartition(".")[2]))
    return made


def save(path: Path, factor: float = 1.0) -> Path:
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    graph = helper.make_graph([node], "g", [rows], [out], [numpy_helper.from_array(weight * np.float32(factor), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str, str]:
    """A model, one whose outputs are 1 % larger (40 dB), and data."""
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32))
    return str(save(tmp_path / "f.onnx")), str(save(tmp_path / "q.onnx", 1.01)), str(tmp_path / "data.npz")
