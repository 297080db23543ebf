"""The stage of the float passes, each behind the equivalence check."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.clean_up import clean_up
from qcompiler.errors import EquivalenceError
from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_the_model_is_cleaned_and_its_layers_are_found(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"))
    after = standing.run(clean_up, standing.subject, standing.asked.target, False)
    assert "BatchNormalization" in {node.op for node in after.reference.graph.nodes}
    assert "BatchNormalization" not in {node.op for node in after.model.graph.nodes}
    assert [one.node for one in after.layers.found] == ["C1", "C2", "C3", "Y"]


def test_every_pass_tells_what_it_moved(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"))
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    errors = {report.name: error for report, error in standing.run.passes["clean_up"]}
    assert 0 <= (errors["fold-batch-norm"] or 0) < 1e-5
    assert errors["unroll-lstm"] is None  # nothing was changed, so nothing was run


def test_without_data_nothing_is_compared(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), data=False, precision="bf16")
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    assert {error for _, error in standing.run.passes["clean_up"]} == {None}


def test_a_pass_that_changes_what_the_model_computes_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"))
    monkeypatch.setattr(FoldBatchNorm, "exact_to", 0.0)
    fold = FoldBatchNorm.rewrite

    def wrong(self: FoldBatchNorm, graph: object) -> object:
        yield from fold(self, graph)
        node = next(node for node in graph.nodes if node.op == "Conv")  # type: ignore[attr-defined]
        node.inputs[1].values = node.inputs[1].values * 2

    monkeypatch.setattr(FoldBatchNorm, "rewrite", wrong)
    with pytest.raises(EquivalenceError, match="fold-batch-norm"):
        standing.run(clean_up, standing.subject, standing.asked.target, False)
