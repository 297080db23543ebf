"""What variants of a model take, from real builds for the usual shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.compiler.pricing import Pricing
from qcompiler.ir import model as models
from qcompiler.planning.changes import in_high_precision
from qcompiler.target import DType
from tests.kit.cases import prepared
from tests.kit.subjects import Standing, before


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    return before("verify", prepared(tmp_path_factory.mktemp("pricing"), "transformer"))


def pricing(standing: Standing, folder: Path) -> Pricing:
    assert standing.decided is not None
    assert standing.lowered is not None
    build, io_types = standing.asked.build, standing.asked.lower.io_types
    return Pricing(standing.subject, standing.decided, standing.lowered, build, io_types, folder)


def test_an_engine_with_free_sizes_is_read_for_the_usual_shape(standing: Standing, tmp_path: Path) -> None:
    priced = pricing(standing, tmp_path)
    assert standing.lowered is not None
    assert list(priced.usual) == ["x"]
    found = priced.of(standing.lowered.model)
    assert found.launches
    assert found.unsized == 0
    assert sum(found.macs.values()) == sum(one.macs for one in standing.lowered.plan)
    assert found.macs[DType.INT8] == sum(one.macs for one in standing.lowered.plan.quantized())
    assert list(tmp_path.iterdir()) == []


def test_the_twin_in_high_precision_has_no_quantized_product(standing: Standing, tmp_path: Path) -> None:
    priced = pricing(standing, tmp_path)
    assert standing.lowered is not None
    assert DType.INT8 not in priced.high.macs
    assert sum(priced.high.macs.values()) == sum(one.macs for one in standing.lowered.plan)


def test_another_plan_gives_another_graph_of_the_same_model(standing: Standing, tmp_path: Path) -> None:
    priced = pricing(standing, tmp_path)
    assert standing.decided is not None
    chosen, graph = standing.decided.chosen, standing.decided.model.graph
    every = {one.node for one in chosen.plan.quantized()}
    floats = in_high_precision(chosen, graph, every, DType.FP16, "slower", lambda old: old.why)
    assert priced.of(priced.lowered_by(floats)).bytes == priced.high.bytes
    assert standing.lowered is not None
    pair = {"same": priced.lowered_by(chosen), "lowered": standing.lowered.model}
    saved = {name: models.save(one, tmp_path / f"{name}.onnx")[0].read_bytes() for name, one in pair.items()}
    assert saved["same"] == saved["lowered"]


def test_what_is_in_high_precision_already_is_its_own_twin(standing: Standing, tmp_path: Path) -> None:
    priced = pricing(standing, tmp_path)
    assert standing.lowered is not None
    plain = replace(standing.lowered, plan=standing.lowered.plan.without(*standing.lowered.plan.decisions))
    assert DType.INT8 in replace(priced, lowered=plain).high.macs
