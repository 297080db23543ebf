"""Taps of a model that gives a sequence: it is left out, and what can be compared is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from qcompiler.ir import model as models
from qcompiler.verification.taps import find_taps, measure
from tests.kit.rewrite import model


def test_a_sequence_has_no_shape_and_is_left_out(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w", "h"),
        ("SplitToSequence", "h parts", "y", {"axis": 1}),
        weights={"w": np.eye(4, dtype=np.float32), "parts": np.array([2, 2])},
        outputs=("h",),
    )
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    proto.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(element)))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    found = measure(loaded, loaded, feeds, find_taps(loaded.graph, loaded.graph, 10))
    assert [tap.name for tap in found.taps] == ["h"]
