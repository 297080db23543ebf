"""Products of one row: quantized where they are what the model consists of, and left where they are next to no work."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.planning.placement.candidates import find_candidates
from qcompiler.planning.placement.few_rows import refusals
from qcompiler.target import parse_target
from tests.kit.rewrite import model, to_graph

RTX = parse_target("tensorrt-rtx")
SHAPES = {"x": (1, 64), "h": (1, 64), "y": (1, 64), "w": (64, 64), "v": (64, 64)}


@pytest.mark.parametrize(
    ("picture", "refused"), [(0, []), (8192, []), (10 * 8192, ["H", "Y"])], ids=["alone", "half", "heads"]
)
def test_the_line_is_the_share_that_may_stay_in_high_precision(picture: int, refused: list[str]) -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto = model(("MatMul", "x w", "h"), ("MatMul", "h v", "y"), inputs={"x": ("n", 64)}, weights={"w": w, "v": w + 1})
    graph = to_graph(proto)
    macs = {"H": 4096, "Y": 4096, "pictures": picture}
    found = refusals(graph, find_candidates(graph, RTX).found, SHAPES, macs, RTX, 0.9)
    assert [one.node for one in found] == refused
    assert all("of the work" in one.why for one in found)


def test_several_rows_are_none_of_its_business_and_a_cpu_gains_by_small_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = to_graph(model(("MatMul", "x w", "y"), inputs={"x": ("n", 64)}, weights={"w": w}))
    macs = {"Y": 4096, "pictures": 10**6}
    many = {"x": (2, 64), "y": (2, 64), "w": (64, 64)}
    assert refusals(graph, find_candidates(graph, RTX).found, many, macs, RTX, 0.9) == []
    cpu = parse_target("onnxruntime")
    assert refusals(graph, find_candidates(graph, cpu).found, SHAPES, macs, cpu, 0.9) == []
