"""The stage of the float passes, each behind the equivalence check."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qcompiler.compiler.record import manifest
from qcompiler.compiler.stages.clean_up import clean_up
from qcompiler.errors import EquivalenceError
from qcompiler.ir import model as models
from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import randomness
from tests.kit.cases import Case, prepared
from tests.kit.rewrite import doubling, node
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


def test_samples_are_joined_by_another_size(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"))
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    told = standing.run.records["equivalence"]
    assert (told["samples"], told["made_up"], told["why"]) == (1, 1, None)
    assert [one["x"] for one in told["shapes"]] == [[1, 3, 16, 16], [2, 3, 16, 16]]
    assert standing.run.records["random"] == []
    assert standing.run.warnings == []


def test_without_data_two_sizes_are_made_up(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), data=False, precision="bf16")
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    told = standing.run.records["equivalence"]
    assert (told["samples"], told["made_up"], told["why"]) == (0, 2, None)
    errors = {report.name: error for report, error in standing.run.passes["clean_up"]}
    assert 0 <= (errors["fold-batch-norm"] or 0) < 1e-5


def test_where_no_feed_can_be_made_the_user_is_told(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), data=False, precision="bf16")
    model = models.copy(standing.subject.model)
    unknown = model.graph.nodes[0]
    unknown.op, unknown.domain = "NobodyKnowsThis", "some.where"
    standing.run(clean_up, standing.subject.editing(model), standing.asked.target, False)
    (warning,) = standing.run.warnings
    assert warning.startswith("nothing checks that the float passes keep what the model computes: ")
    assert "NobodyKnowsThis" in standing.run.records["equivalence"]["why"]


@pytest.mark.parametrize("data", [True, False])
def test_a_pass_that_changes_what_the_model_computes_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bool
) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), data=data, precision="bf16")
    doubling(monkeypatch, FoldBatchNorm)
    after = standing.run(clean_up, standing.subject, standing.asked.target, False)
    assert "double" not in {node.name for node in after.model.graph.nodes}
    (warning,) = standing.run.warnings
    assert "pass 'fold-batch-norm' changed what the model computes" in warning
    assert "a defect of qcompiler" in warning
    undone = {one["pass"]: one["undone"] for one in manifest(standing.run, Recipe())["passes"] if one["undone"]}
    assert list(undone) == ["fold-batch-norm"]
    with pytest.raises(EquivalenceError, match="fold-batch-norm"):
        standing.run(clean_up, standing.subject, standing.asked.target, False, strict=True)


def noisy(op: str, path: Path) -> Case:
    case = prepared(path, "conv")
    proto = onnx.load(case.source)
    last = proto.graph.node[-1]
    output, last.output[0] = last.output[0], "plain"
    proto.graph.node.extend([node(op, "plain", "drawn"), node("Add", "plain drawn", output)])
    onnx.save(proto, case.source)
    return case


def test_a_model_that_draws_is_compared_on_the_same_numbers(tmp_path: Path) -> None:
    standing = before("clean_up", noisy("RandomNormalLike", tmp_path))
    after = standing.run(clean_up, standing.subject, standing.asked.target, False)
    assert standing.run.records["random"] == [{"node": "DRAWN", "op": "RandomNormalLike"}]
    (warning,) = standing.run.warnings
    assert warning.startswith("the model draws random numbers, at 'DRAWN' (RandomNormalLike): ")
    assert "RandomNormalLike" in {one.op for one in after.model.graph.nodes}
    assert not any(report.undone for report, _ in standing.run.passes["clean_up"])


def test_a_model_that_is_restless_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "held", lambda proto, draw=0: proto)
    monkeypatch.setattr(randomness, "draws", lambda one: False)
    standing = before("clean_up", noisy("RandomNormalLike", tmp_path))
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    assert standing.run.records["random"] == [{"node": "DRAWN", "op": "RandomNormalLike"}]
    assert "not deterministic" in standing.run.warnings[0]
    assert "'DRAWN' (RandomNormalLike)" in standing.run.warnings[0]


def test_infinities_that_are_made_of_numbers_are_told_of(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    proto = onnx.load(case.source)
    last = proto.graph.node[-1]
    output, last.output[0] = last.output[0], "plain"
    proto.graph.node.extend([node("Relu", "plain", "positive"), node("Log", "positive", output)])
    onnx.save(proto, case.source)
    standing = before("clean_up", case)
    standing.run(clean_up, standing.subject, standing.asked.target, False)
    (warning,) = standing.run.warnings
    assert f"output '{output}' of the model has infinite values, which node 'Y_0' (Log)" in warning


def test_an_equalization_that_was_asked_for_and_did_nothing_says_so(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "transformer"))
    standing.run(clean_up, standing.subject, standing.asked.target, True)
    assert [text for text in standing.run.warnings if text.startswith("--equalize changed nothing")]


def test_an_equalization_that_found_something_is_no_news(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"))
    standing.run(clean_up, standing.subject, standing.asked.target, True)
    assert standing.run.warnings == []


def test_known_ranges_follow_values_to_the_names_that_passes_leave_them_under(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    (tmp_path / "ranges.json").write_text(
        '{"c2": 1.0, "n2": 2.0, "r1": 3.0}'
    )  # n2 normalizes c2, and is folded into it
    for data in (True, False):
        standing = before("qfep", case, data=data, ranges=str(tmp_path / "ranges.json"))
        here = {name: one.amax for name, one in standing.subject.scope.ranges.items()}
        assert here == {"c2": 2.0, "r1": 3.0}
