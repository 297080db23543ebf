"""Twins of models in another float type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.twins import TYPES, main
from qcompiler.passes.importing import imported
from qcompiler.runtime.session import Session
from tests.kit.rewrite import graph_proto, model

F32 = np.float32


def single(values: Any) -> Any:
    return np.array(values, F32)


def network() -> onnx.ModelProto:
    """With what takes float32 only (the scales of a Resize), a branch, and a mask beyond float16."""
    then = graph_proto([("MatMul", "r w", "t")], {}, ["t"])
    other = graph_proto([("Neg", "r", "o")], {}, ["o"])
    return model(
        ("Resize", "x _ scales", "z", {"mode": "nearest"}), ("Add", "z mask", "m"), ("Relu", "m", "r"),
        ("If", "c", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 2), "c": (np.bool_, ())},
        weights={"scales": single([1, 2]), "w": np.eye(4, dtype=F32) / 4, "mask": single([0, -1e9, 0, 0])},
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_twin_is_the_model_in_another_type(tmp_path: Path, name: str) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    assert main(["--write", str(tmp_path / "m.onnx"), str(tmp_path / "t.onnx"), name]) == 0
    twin = onnx.load(tmp_path / "t.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in twin.graph.initializer}
    assert kinds["mask"] == onnx.helper.np_dtype_to_tensor_dtype(TYPES[name])
    assert onnx.TensorProto.FLOAT in kinds.values()  # the scales
    feeds: dict[str, Any] = {"x": single([[1, 2], [3, 4]]), "c": np.array(True)}
    expected = Session(tmp_path / "m.onnx").run(feeds)["y"]
    found = imported(tmp_path / "t.onnx")
    assert found.ends == {"x": TYPES[name], "y": TYPES[name]}
    np.testing.assert_allclose(Session(found).run(feeds)["y"], expected)
