"""How staying FP32 spreads to neighbours: angles, sizes, recurrent layers, written-out normalisations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.statistics import ranges
from qcompiler.target import DType
from tests.kit.rewrite import model, random_feeds, to_graph
from tests.kit.typed import F32, assert_no_cast_behind_a_cast, by_name, operand_types, ops, rng, typed, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


def test_rotary_angles_are_computed_in_fp32_from_the_position_on() -> None:
    proto = model(
        ("Cast", "p", "f", {"to": 1}),
        ("Mul", "f freq", "angle"),
        ("Cos", "angle", "c"),
        ("Sin", "angle", "s"),
        ("Mul", "x c", "xc"),
        ("Mul", "x s", "xs"),
        ("Add", "xc xs", "y"),
        inputs={"x": (6, 4), "p": (np.int64, (6, 1))},
        weights={"freq": np.array([1, 0.1, 0.01, 0.001], np.float32)},
    )
    feeds: Feeds = {"x": rng().standard_normal((6, 4)).astype(np.float32), "p": np.arange(1500, 1506).reshape(6, 1)}
    graph, decisions = typed(proto, feeds)
    assert {name: decisions[name].precision for name in ("ANGLE", "C", "S", "XC", "Y")} == {
        "ANGLE": DType.FP32, "C": DType.FP32, "S": DType.FP32, "XC": DType.FP16, "Y": DType.FP16,
    }  # fmt: skip
    assert decisions["ANGLE"].rule == "angle"
    assert by_name(graph, "F").attrs["to"] == onnx.TensorProto.FLOAT


def test_sizes_computed_in_floats_stay_exact() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Cast", "s", "f", {"to": 1}),
        ("Mul", "f one", "g"),
        ("Floor", "g", "h"),
        ("Cast", "h", "i", {"to": 7}),
        ("Reshape", "x i", "y"),
        weights={"one": np.array([0.5, 2], np.float32)},
        inputs={"x": (2, 2049)},
    )
    graph = to_graph(proto)
    report = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))(graph)
    rules = {one.node: one.rule for one in report.decisions}
    assert rules["G"] in ("index", "integers")
    assert rules["H"] in ("index", "integers")
    assert all(node.attrs["to"] != onnx.TensorProto.FLOAT16 for node in graph.nodes if node.name in ("F", "I"))


def test_a_written_out_normalisation_is_one_island() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("ReduceMean", "m", "mean", {"axes": [-1]}),
        ("Sub", "m mean", "d"),
        ("Pow", "d two", "p"),
        ("ReduceMean", "p", "var", {"axes": [-1]}),
        ("Add", "var eps", "v"),
        ("Sqrt", "v", "s"),
        ("Div", "d s", "n"),
        ("Mul", "n gamma", "g"),
        ("MatMul", "g w", "y"),
        weights={"w": weight(4, 4), "two": F32.type(2), "eps": F32.type(1e-12), "gamma": weight(4)},
    )
    graph, decisions = typed(proto)
    half = {name for name, one in decisions.items() if one.precision is DType.FP16}
    assert half == {"M", "G", "Y"}
    assert ops(graph).count("Cast") == 4  # in, behind the first MatMul, behind the Div, out
    assert_no_cast_behind_a_cast(graph)


@pytest.mark.parametrize("keep", [(), ("T",)])
def test_no_cast_stands_in_front_of_a_recurrent_layer_which_tensorrt_rtx_could_not_build(
    keep: tuple[str, ...], tmp_path: Path
) -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Relu", "m", "r"),
        ("Transpose", "r", "t", {"perm": [1, 0, 2]}),
        ("GRU", "t gw gr", "g", {"hidden_size": 16}),
        ("Squeeze", "g one", "s"),
        ("MatMul", "s w", "y"),
        inputs={"x": (1, 5, 16)},
        weights={"w": weight(16, 16), "gw": weight(1, 48, 16), "gr": weight(1, 48, 16), "one": np.array([1])},
    )
    graph, decisions = typed(proto, keep=keep)
    assert {name for name, one in decisions.items() if one.precision is DType.FP16} == {"M", "Y"}
    assert decisions["R"].rule == "recurrent"
    operand_types(graph, tmp_path)
