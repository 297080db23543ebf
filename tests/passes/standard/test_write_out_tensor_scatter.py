from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.standard.write_out_tensor_scatter import WriteOutTensorScatter
from tests.kit.rewrite import check, check_skipped, model

RNG = np.random.default_rng(3)


def scatter(at: list[int] | None, **attrs: Any) -> tuple[Any, dict[str, Any]]:
    """Three rows are written into a cache of eight, of two samples and two heads."""
    inputs: dict[str, Any] = {"c": (None, 2, 8, 4), "u": (None, 2, None, 4)}
    feed: dict[str, Any] = {
        "c": RNG.standard_normal((2, 2, 8, 4)).astype(np.float32),
        "u": RNG.standard_normal((2, 2, 3, 4)).astype(np.float32),
    }
    if at is not None:
        inputs["at"], feed["at"] = (np.int64, (None,)), np.array(at)
    proto = model(("TensorScatter", "c u" + (" at" if at else ""), "y", attrs), inputs=inputs, opset=24)
    proto.ir_version = 11
    return proto, feed


@pytest.mark.parametrize("at", [None, [0, 0], [5, 2]])
@pytest.mark.parametrize("attrs", [{}, {"axis": 2}, {"mode": "circular"}])
def test_it_is_what_onnx_runtime_computes(at: list[int] | None, attrs: dict[str, Any]) -> None:
    graph, _ = check(WriteOutTensorScatter(), *scatter(at, **attrs), tolerance=0)
    assert not any(graphs.is_op(node, "TensorScatter") for node in graph.nodes)


def test_behind_the_end_it_begins_again() -> None:
    check(WriteOutTensorScatter(), *scatter([7, 6], mode="circular"), tolerance=0)


def test_an_update_of_unknown_rank_stays() -> None:
    proto, _ = scatter([0, 0])
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    check_skipped(WriteOutTensorScatter(), proto, "axes")
