"""The stage of LLM.int8(); which channels leave: tests/outliers/test_llm_int8.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.llm_int8 import llm_int8
from qcompiler.recipe.tables import LlmInt8Table
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_channels_above_the_threshold_get_a_product_of_their_own(tmp_path: Path) -> None:
    table = LlmInt8Table(threshold=3.5, most=0.5)
    standing = before("llm_int8", prepared(tmp_path, "transformer"), llm_int8=table)
    after = standing.run(llm_int8, standing.subject, standing.asked.watch, standing.asked.llm_int8)
    assert any(one.channels for one in after.splits.decided)
    assert len(after.model.graph.nodes) > len(standing.subject.model.graph.nodes)
    assert {one.rule for one in after.layers.refused} >= {"llm-int8"}
    assert not standing.subject.splits.decided


@pytest.mark.parametrize("threshold", ["off", 1e6])
def test_where_nothing_leaves_the_model_stays(tmp_path: Path, threshold: str | float) -> None:
    table = LlmInt8Table(threshold=threshold)
    standing = before("llm_int8", prepared(tmp_path, "transformer"), llm_int8=table)
    after = standing.run(llm_int8, standing.subject, standing.asked.watch, standing.asked.llm_int8)
    assert after.model is standing.subject.model
