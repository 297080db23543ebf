"""A model as every stage and tool begins with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.passes.importing import imported
from tests.kit.rewrite import content, model

F16 = np.dtype(np.float16)


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def test_a_float32_model_is_itself(tmp_path: Path) -> None:
    loaded = models.load(saved(tmp_path, model(("Relu", "x", "y"))))
    assert imported(loaded) is loaded
    assert not loaded.ends


def test_the_types_of_the_ends_are_remembered_and_the_given_model_stays(tmp_path: Path) -> None:
    proto = model(("Cast", "x", "h", {"to": onnx.TensorProto.FLOAT16}), ("MatMul", "h w", "y"),
                  weights={"w": np.eye(4, dtype=F16)})  # fmt: skip
    loaded = models.load(saved(tmp_path, proto))
    before = content(loaded.graph)
    found = imported(loaded)
    assert found.ends == {"y": F16}
    assert (found.source, found.files) == (loaded.source, loaded.files)
    assert content(loaded.graph) == before
    assert imported(found) is found
    assert models.copy(found).content() != models.load(loaded.source).content()  # type: ignore[arg-type]


def test_functions_are_inlined_so_that_types_told_by_their_callers_are_seen(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["a"], ["h"])
    cast.attribute.append(onnx.AttributeProto(name="to", ref_attr_name="kind", type=onnx.AttributeProto.INT))
    function = helper.make_function("local", "As", ["a"], ["h"], [cast], [helper.make_opsetid("", 17)], ["kind"])
    proto = model(("As", "x", "h", {"kind": onnx.TensorProto.FLOAT16}, "local"), ("Relu", "h", "y"), domains=["local"])
    proto.functions.append(function)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    found = imported(saved(tmp_path, proto))
    assert F16 not in element_types.infer_all(found.graph).values()
    assert [node.op for node in graphs.walk(found.graph)] == ["Relu"]


def test_constants_that_lost_their_number_are_remembered(tmp_path: Path) -> None:
    proto = model(("Clip", "x low", "c"), ("Div", "x c", "d"), ("Mul", "d far", "y"), inputs={"x": (F16, (2, 4))},
                  weights={"low": np.zeros((), F16), "far": np.full((), -np.inf, F16)})  # fmt: skip
    loaded = models.load(saved(tmp_path, proto))
    found = imported(loaded)
    assert (loaded.mended, found.mended) == ((), ("far", "low"))
    assert models.copy(found).mended == imported(found).mended == found.mended
