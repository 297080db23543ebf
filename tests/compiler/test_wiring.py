"""The graph of a plan in a manifest: small, and all that neighbours need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.wiring import wiring
from qcompiler.ir import model as models
from qcompiler.plan import Decision, Plan
from qcompiler.target import DType
from tests.kit.rewrite import model
from tests.kit.tools.stored import KINDS, old, size_of, stored


def graph_of(folder: Path, plan: Plan) -> dict[str, Any]:
    proto = model(
        ("MatMul", "x w", "a"),
        ("Add", "a b", "c"),
        ("Split", "c", "d e", {"num_outputs": 2, "axis": 1}),
        ("Add", "d e", "y"),
        inputs={"x": ("n", 4)},
        weights={"w": np.ones((4, 6), np.float32), "b": np.ones(6, np.float32)},
    )
    onnx.save(proto, folder / "m.onnx")
    return wiring(models.load(folder / "m.onnx").graph, plan)


def test_tensors_have_places_and_constants_have_none(tmp_path: Path) -> None:
    plan = Plan.of([Decision("C", "Add", DType.FP16, "fits", ""), Decision("A", "MatMul", DType.INT8, "linear", "")])
    found = graph_of(tmp_path, plan.with_(axes={"A": 1}, reads={"Y": (1,)}))
    nodes = ["C", "A", *found["others"]]
    names = found["tensors"]
    assert len(set(names)) == len(names)
    assert {"w", "b"} & set(names) == set()
    spelled = {
        node: ([names[i] for i in reads], [names[i] for i in writes])
        for node, reads, writes in zip(nodes, found["reads"], found["writes"], strict=True)
    }
    assert (spelled["C"], spelled["A"]) == ((["a"], ["c"]), (["x"], ["a"]))
    assert (["c"], ["d", "e"]) in spelled.values()
    assert [names[i] for i in found["inputs"] + found["outputs"]] == ["x", "y"]
    assert found["weights"] == {"A": {"tensor": "w", "shape": [4, 6], "axis": 1}}
    assert found["pairs"] == {"Y": [1]}


def test_a_decision_about_a_node_that_is_not_there_has_no_wires(tmp_path: Path) -> None:
    found = graph_of(tmp_path, Plan.of([Decision("elsewhere", "Cast", DType.FP16, "cast", "")]))
    assert (found["reads"][0], found["writes"][0]) == ([], [])
    assert found["weights"]["A"] == {"tensor": "w", "shape": [4, 6]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_explain_needs_makes_a_manifest_a_third_larger_at_most(kind: str) -> None:
    manifest = stored(kind)
    assert len(manifest["graph"]["reads"]) == len(manifest["plan"]) + len(manifest["graph"]["others"])
    assert size_of(manifest) <= size_of(old(manifest)) * 4 / 3
