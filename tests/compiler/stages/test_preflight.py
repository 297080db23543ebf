"""The stage in which the engine's parser reads the float graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.stages.preflight import preflight
from qcompiler.errors import EngineError
from qcompiler.ir import model as models
from qcompiler.target import parse_target
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_a_model_that_the_parser_takes_leaves_nothing_behind(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("qfep", case)
    paths = Paths.of(case.out / "m.engine", build=True)
    standing.run(preflight, standing.subject.model, standing.asked.target, paths)
    assert case.left() == []


def test_an_operator_that_the_engine_lacks_is_refused_by_name(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("qfep", case)
    model = models.copy(standing.subject.model)
    unknown = next(node for node in model.graph.nodes if node.op == "GlobalAveragePool")
    unknown.op, unknown.domain = "NobodyKnowsThis", "some.where"
    paths = Paths.of(case.out / "m.engine", build=True)
    with pytest.raises(EngineError, match="NobodyKnowsThis"):
        standing.run(preflight, model, parse_target("tensorrt-rtx"), paths)
    assert case.left() == []


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_output_that_is_an_input_is_refused_by_name(tmp_path: Path, engine: str) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("qfep", case)
    model = models.copy(standing.subject.model)
    model.graph.outputs.append(model.graph.inputs[0])
    paths = Paths.of(case.out / "m.engine", build=True)
    with pytest.raises(EngineError, match="output 'x' of the model is an input"):
        standing.run(preflight, model, parse_target(engine), paths)
