"""What is in a graph as it was loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qcompiler.tools.inspect.inspection import inspect
from tests.kit.rewrite import model
from tests.kit.tools.inspected import RNG, saved


def test_strings_and_sequences_are_described(tmp_path: Path) -> None:
    proto = model(
        ("SplitToSequence", "x", "s", {"axis": 0}),
        ("Identity", "t", "u"),
        inputs={"x": (2, 4), "t": (np.str_, ("n",))},
        outputs=("s", "u"),
    )
    found = inspect(saved(tmp_path, proto))
    assert found.inputs["t"] == ("string", ("n",))
    assert found.outputs["s"] == ("sequence", None)
    assert (found.macs, found.problems) == (None, ())


def test_what_came_quantized_is_said(tmp_path: Path) -> None:
    proto = model(
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("DequantizeLinear", "w s z", "v"),
        ("MatMul", "d v", "y"),
        inputs={"x": (4, 32)},
        weights={"s": np.float32(0.1), "z": np.int8(0), "w": RNG.integers(-9, 9, (32, 32)).astype(np.int8)},
    )
    found = inspect(saved(tmp_path, proto))
    assert found.quantized == {"QuantizeLinear": 1, "DequantizeLinear": 2}
    assert [one.rule for one in found.layers] == ["quantized-already"]
    assert found.weights["int8"] == 1025


def test_weights_in_constant_nodes_and_packed_weights_are_counted(tmp_path: Path) -> None:
    constant = onnx.numpy_helper.from_array(RNG.standard_normal((32, 32)).astype(np.float32))
    proto = model(("Constant", "", "w", {"value": constant}), ("MatMul", "x w", "y"), inputs={"x": (4, 32)})
    found = inspect(saved(tmp_path, proto))
    assert (found.parameters, found.weights) == (1024, {"float32": 4096})
    assert [one.quantizable for one in found.layers] == [True]
