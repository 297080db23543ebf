"""The stage that makes the plan's graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.lower import lower
from qcompiler.target import DType
from tests.kit.cases import QUANTIZED, prepared
from tests.kit.subjects import before


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_graph_is_typed_and_the_plan_says_what_became_of_the_rest(tmp_path: Path, name: str) -> None:
    standing = before("lower", prepared(tmp_path, name))
    assert standing.decided is not None
    floats = {node.op for node in standing.decided.model.graph.nodes}
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    assert "QuantizeLinear" not in floats
    assert "QuantizeLinear" in {node.op for node in done.model.graph.nodes}
    assert {node.op for node in standing.decided.model.graph.nodes} == floats  # as it was handed on
    assert {one.node for one in done.plan.quantized()} == QUANTIZED[name]
    assert DType.FP16 in {one.precision for one in done.plan}
    assert standing.run.records["macs"]["quantized_share"] == done.plan.share()
    assert standing.run.records["plan"] == list(done.plan)


def test_what_keeps_its_type_is_told(tmp_path: Path) -> None:
    standing = before("lower", prepared(tmp_path, "conv"), io_types="high-precision")
    assert standing.decided is not None
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    kept = [
        tensor.name for tensor in (*done.model.graph.inputs, *done.model.graph.outputs) if tensor.dtype != "float16"
    ]
    assert all(any(f"'{name}' keeps its type" in text for text in standing.run.warnings) for name in kept)
