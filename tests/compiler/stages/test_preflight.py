"""The stage in which the engine is built once from the float graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.serving import BuildOptions
from qcompiler.compiler.stages.preflight import preflight
from qcompiler.errors import EngineError
from qcompiler.ir import model as models
from qcompiler.recipe.tables import GenerationTable
from qcompiler.target import DType, parse_target
from tests.kit.cases import Case, prepared
from tests.kit.rewrite import model as proto_of
from tests.kit.subjects import Standing, before


def fly(
    standing: Standing, case: Case, engine: str = "tensorrt-rtx", high_precision: str = "fp16", **changes: Any
) -> None:
    target = replace(parse_target(engine), high_precision=DType(high_precision))
    paths = Paths.of(case.out / "m.engine", build=True)
    options = BuildOptions(target, None, GenerationTable(), False)
    standing.run(preflight, standing.subject.with_(**changes), target, paths, options)


def made(tmp_path: Path, proto: onnx.ModelProto, **feeds: tuple[int, ...]) -> tuple[Standing, Case]:
    """A compilation of another model than those of the kit, behind clean-up."""
    case = Case(tmp_path, "made")
    onnx.save(proto, case.source)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: rng.standard_normal((4, *shape[1:])).astype(np.float32) for name, shape in feeds.items()
    }
    np.savez(case.data, **arrays)
    return before("qfep", case), case


@pytest.mark.parametrize("high_precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_a_model_that_can_be_built_leaves_nothing_behind(tmp_path: Path, name: str, high_precision: str) -> None:
    case = prepared(tmp_path, name)
    fly(before("qfep", case, high_precision=high_precision), case, high_precision=high_precision)
    assert case.left() == []


@pytest.mark.parametrize("high_precision", ["fp16", "bf16", "fp32"])
def test_what_is_built_is_typed_as_the_rest_of_the_result_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, high_precision: str
) -> None:
    case = prepared(tmp_path, "transformer")
    written: list[set[Any]] = []
    save = models.save

    def recorded(model: models.Model, path: Path) -> list[Path]:
        products = [node for node in model.graph.nodes if node.op in ("MatMul", "Gemm")]
        written.append({onnx.helper.np_dtype_to_tensor_dtype(np.dtype(one.outputs[0].dtype)) for one in products})
        return save(model, path)

    standing = before("qfep", case, high_precision=high_precision)
    monkeypatch.setattr(models, "save", recorded)
    fly(standing, case, high_precision=high_precision)
    types = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16, "fp32": onnx.TensorProto.FLOAT}
    assert written[1:] == [{types[high_precision]}]  # the parser is asked first, as the model is


def test_an_operator_that_the_engine_lacks_is_refused_by_name(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("qfep", case)
    model = models.copy(standing.subject.model)
    unknown = next(node for node in model.graph.nodes if node.op == "GlobalAveragePool")
    unknown.op, unknown.domain = "NobodyKnowsThis", "some.where"
    with pytest.raises(EngineError, match="NobodyKnowsThis"):
        fly(standing, case, model=model)
    assert case.left() == []


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_output_that_is_an_input_is_refused_by_name(tmp_path: Path, engine: str) -> None:
    case = prepared(tmp_path, "conv")
    standing = before("qfep", case)
    model = models.copy(standing.subject.model)
    model.graph.outputs.append(model.graph.inputs[0])
    with pytest.raises(EngineError, match="output 'x' of the model is an input"):
        fly(standing, case, engine, model=model)


def test_what_only_the_builder_refuses_is_named_with_a_remedy(tmp_path: Path) -> None:
    values = {"most": np.array([9], np.int64), "overlap": np.array([0.5], np.float32)}
    proto = proto_of(
        ("Relu", "boxes", "positive"),
        ("NonMaxSuppression", "positive scores most overlap", "chosen"),
        inputs={"boxes": (1, 40, 4), "scores": (1, 3, 40)},
        outputs=("chosen",),
        weights=values,
    )
    standing, case = made(tmp_path, proto, boxes=(1, 40, 4), scores=(1, 3, 40))
    with pytest.raises(EngineError, match=r"\(NonMaxSuppression\): it has no kernel.*extract_model") as refused:
        fly(standing, case)
    assert "Error Code" not in str(refused.value)
    assert "Error Code" in refused.value.said
    assert case.left() == []


def test_a_top_k_of_too_many_values_says_how_many_are_possible(tmp_path: Path) -> None:
    proto = proto_of(
        ("Relu", "x", "r"),
        ("TopK", "r k", "values places"),
        inputs={"x": (1, 8400)},
        outputs=("values", "places"),
        weights={"k": np.array([4000], np.int64)},
    )
    standing, case = made(tmp_path, proto, x=(1, 8400))
    with pytest.raises(EngineError, match=r"\(TopK\): K exceeds the maximum value allowed \(3840\).*fewer values"):
        fly(standing, case)
