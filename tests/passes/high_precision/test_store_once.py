from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.model import to_proto
from qcompiler.passes.high_precision.store_once import StoreOnce
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import check_untouched, graph_proto, model, to_graph, whole

RNG = np.random.default_rng(9)
W = RNG.standard_normal((32, 48)).astype(np.float32)


def merged(weights: dict[str, Any], then: str = "a", other: str = "b") -> gs.Graph:
    """If(flag) {x · one weight} else {-(x · another)}."""
    half = weights[then].dtype == np.float16
    into, out = ([("Cast", "x", "xh", {"to": 10})], [("Cast", "ph", "p", {"to": 1})]) if half else ([], [])
    product = ("MatMul", f"{'xh' if half else 'x'} {then}", "ph" if half else "p")
    branches = {
        "then_branch": graph_proto([*into, product, *out], {}, ["p"]),
        "else_branch": graph_proto([("MatMul", f"x {other}", "m"), ("Neg", "m", "q")], {}, ["q"]),
    }
    inputs = {"x": (2, 32), "flag": (bool, ())}
    return to_graph(model(("If", "flag", "y", branches), inputs=inputs, weights=weights, opset=18))


def run(graph: gs.Graph, flag: bool) -> Any:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    return Session(graph, optimize=False).run({"x": x, "flag": np.array(flag)})["y"]


def size(graph: gs.Graph) -> int:
    return len(whole(graph).SerializeToString())


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_a_branch_in_single_reads_the_halves_of_the_other_one(dtype: DType) -> None:
    graph = merged({"a": W.astype(np.float16), "b": W})
    before, large = [run(graph, flag) for flag in (True, False)], size(graph)
    assert StoreOnce(dtype)(graph).changed
    assert size(graph) < large - W.nbytes + 500
    np.testing.assert_array_equal(run(graph, True), before[0])
    np.testing.assert_allclose(run(graph, False), before[1], atol=1e-2)
    assert len(to_proto(graph)[0].graph.initializer) == 1


def test_two_copies_in_single_stay_exact_and_become_one() -> None:
    graph = merged({"a": W, "b": W.copy()})
    before = run(graph, False)
    assert StoreOnce(DType.FP32)(graph).changed == 1
    np.testing.assert_array_equal(run(graph, False), before)
    (only,) = to_proto(graph)[0].graph.initializer
    assert only.data_type == 1


@pytest.mark.parametrize("weight", [W * 1e5, W * np.float32(1e-9), W[:4, :4]], ids=["large", "small", "few"])
def test_what_half_cannot_hold_stays(weight: Any) -> None:
    branches = {
        "then_branch": graph_proto([("MatMul", "x a", "p")], {}, ["p"]),
        "else_branch": graph_proto([("Neg", "z", "q")], {}, ["q"]),
    }
    inputs = {"x": (2, weight.shape[0]), "z": (2, weight.shape[1]), "flag": (bool, ())}
    check_untouched(StoreOnce(), model(("If", "flag", "y", branches), inputs=inputs, weights={"a": weight}))


def test_models_without_branches_are_not_touched() -> None:
    check_untouched(StoreOnce(), model(("MatMul", "x w", "y"), inputs={"x": (2, 32)}, weights={"w": W}))
