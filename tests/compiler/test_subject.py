"""The values that flow through stages."""

from __future__ import annotations

from pathlib import Path

from qcompiler.ir import model as models
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_another_model_has_its_own_layers_and_the_subject_stays(tmp_path: Path) -> None:
    subject = before("observe", prepared(tmp_path, "conv")).subject
    fewer = models.copy(subject.model)
    gemm = next(node for node in fewer.graph.nodes if node.op == "Gemm")
    gemm.op, gemm.domain = "Unheard", "some.where"
    after = subject.editing(fewer)
    assert [one.node for one in after.layers.found] == ["C1", "C2", "C3"]
    assert [one.node for one in subject.layers.found] == ["C1", "C2", "C3", "Y"]
    assert after.reference is subject.reference
    assert dict(after.inputs) == dict(subject.inputs)
