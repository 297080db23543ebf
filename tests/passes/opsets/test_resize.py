"""What the differential test does not show: how the result looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.opsets.raise_opset import RaiseOpset
from tests.kit.rewrite import check, model, to_graph

IMAGE = {"x": (1, 2, 6, 6)}


def scales(*values: float) -> dict[str, Any]:
    return {"s": np.array(values, np.float32)}


@pytest.mark.parametrize(
    ("factors", "rule"),
    [((1, 1, 2, 3), ["floor"]), ((1, 1, 0.5, 0.7), ["ceil"]), ((1, 1, 2, 0.5), ["floor", "ceil"])],
)
def test_one_node_where_all_axes_grow_or_all_shrink(factors: tuple[float, ...], rule: list[str]) -> None:
    proto = model(("Resize", "x s", "y"), inputs=IMAGE, weights=scales(*factors), opset=10)
    graph, _ = check(RaiseOpset(19), proto)
    assert [node.attrs["nearest_mode"] for node in graph.nodes if node.op == "Resize"] == rule
    assert {node.attrs["coordinate_transformation_mode"] for node in graph.nodes if node.op == "Resize"} == {
        "asymmetric"
    }


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_an_upsample_is_one_resize_whatever_its_scales(opset: int) -> None:
    if opset < 9:
        proto = model(("Upsample", "x", "y", {"scales": [1.0, 1.0, 1.5, 2.0]}), inputs=IMAGE, opset=opset)
    else:
        proto = model(("Upsample", "x s", "y"), inputs={**IMAGE, "s": (4,)}, opset=opset)
    graph = to_graph(proto)
    RaiseOpset(21)(graph)
    assert [node.op for node in graph.nodes] == ["Resize"]
    assert graph.nodes[0].attrs["nearest_mode"] == "floor"


def test_the_rule_that_is_gone_is_said_by_another() -> None:
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
    weights = {**scales(1, 1, 2.5, 0.7), "r": np.empty(0, np.float32)}
    graph, _ = check(RaiseOpset(21), model(("Resize", "x r s", "y", attrs), inputs=IMAGE, weights=weights, opset=11))
    assert graph.nodes[0].attrs["coordinate_transformation_mode"] == "half_pixel"
    assert graph.nodes[0].attrs["nearest_mode"] == "round_prefer_ceil"
