"""The door for models that ONNX Runtime cannot run as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import EngineError, ModelError
from qcompiler.ir.model import Model
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.known_part import known_part, refuse_unknown
from qcompiler.passes.known_part import whole as both
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit.rewrite import model, to_graph, whole

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def loaded(*nodes: Any, opset: int = 13, **more: Any) -> Model:
    return Model(to_graph(model(*nodes, opset=opset, **more)), {}, None, 8)


def detector(domain: str = "TRT") -> Model:
    return loaded(
        ("MatMul", "x w", "h"), ("Split", "h", "boxes scores", {"axis": 1}),
        ("EfficientNMS_TRT", "boxes scores", "n b s c", {"max_output_boxes": 3}, domain),
        ("Squeeze", "n axes", "y"),
        inputs={"x": ("batch", 8)}, weights={"w": draw(8, 8), "axes": np.array([1])}, outputs=("y", "c"),
        domains=(domain,) if domain else (),
    )  # fmt: skip


def test_what_can_be_run_is_the_model_itself() -> None:
    source = loaded(("Relu", "x", "y"))
    known = known_part(source)
    assert known.model is source
    assert (known.behind, known.reports, known.to_json()) == (None, (), [])
    assert both(source, None) is source


@pytest.mark.parametrize("domain", ["TRT", "trt.plugins", ""])
def test_a_plugin_and_what_is_behind_it_stay_out_and_come_back(domain: str) -> None:
    known = known_part(detector(domain))
    assert known.behind is not None
    assert [tensor.name for tensor in known.model.graph.outputs] == ["boxes", "scores"]
    assert {one.name: one.dtype for one in known.model.graph.outputs} == {"boxes": np.float32, "scores": np.float32}
    Session(known.model).run({"x": draw(2, 8)})
    assert known.to_json() == [{"node": known.behind.unknown[0].node, "op": "EfficientNMS_TRT", "domain": domain}]
    again = both(known.model, known.behind)
    assert [tensor.name for tensor in again.graph.outputs] == ["y", "c"]
    assert [node.op for node in again.graph.nodes] == ["MatMul", "Split", "EfficientNMS_TRT", "Squeeze"]


def test_nodes_behind_follow_the_opset_of_the_rest() -> None:
    source = loaded(
        ("Relu", "x", "h"), ("Mine", "h", "m", {}, "their.own"), ("ReduceMean", "m", "y", {"axes": [1]}),
        opset=13, domains=("their.own",),
    )  # fmt: skip
    known = known_part(source)
    known.model.graph.opset = 21
    again = both(known.model, known.behind)
    mean = again.graph.nodes[-1]
    assert (mean.op, "axes" in mean.attrs, len(mean.inputs)) == ("ReduceMean", False, 2)
    assert {one.domain: one.version for one in whole(again.graph).opset_import} == {"": 21, "their.own": 1}


def test_fused_operators_without_a_kernel_are_written_out() -> None:
    source = loaded(
        ("BiasSplitGelu", "x b", "h", {}, MICROSOFT), ("BiasGelu", "h c", "y", {}, MICROSOFT),
        inputs={"x": ("batch", 3, 8)}, weights={"b": draw(8), "c": draw(4)},
    )  # fmt: skip
    known = known_part(source)
    assert known.behind is None
    assert [node.op for node in known.model.graph.nodes if node.domain == MICROSOFT] == ["BiasGelu"]
    assert Session(known.model).run({"x": draw(2, 3, 8)})["y"].shape == (2, 3, 4)


def test_quantizers_of_trt_are_read() -> None:
    source = loaded(
        ("TRT_FP8QuantizeLinear", "x s", "q", {}, "trt"), ("TRT_FP8DequantizeLinear", "q s", "y", {}, "trt"),
        weights={"s": np.float32(0.5)}, domains=("trt",),
    )  # fmt: skip
    known = known_part(source)
    assert [node.op for node in known.model.graph.nodes] == ["QuantizeLinear", "DequantizeLinear"]
    assert known.model.graph.opset >= 19
    np.testing.assert_array_equal(Session(known.model).run({"x": np.full((2, 4), 3, np.float32)})["y"], 3)


@pytest.mark.parametrize(
    ("target", "kind", "why"),
    [
        ("tensorrt-rtx", EngineError, "TensorRT-RTX has no plugins.*--target tensorrt"),
        ("onnxruntime", ModelError, "--plugin LIB"),
    ],
)
def test_a_target_without_the_plugin_refuses_by_name(target: str, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=rf"EfficientNMS_TRT of domain 'TRT'.*{why}"):
        refuse_unknown(known_part(detector()), parse_target(target))


def test_tensorrt_takes_plugins_and_no_operators_of_onnxruntime() -> None:
    refuse_unknown(known_part(detector()), parse_target("tensorrt"))
    source = loaded(
        ("Relu", "x", "h"), ("GemmFastGelu", "h w", "y", {}, MICROSOFT),
        inputs={"x": (2, 4)}, weights={"w": draw(4, 4)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="GemmFastGelu of domain 'com.microsoft'"):
        refuse_unknown(known_part(source), parse_target("tensorrt"))


def test_the_file_that_was_loaded_stays_as_it_is() -> None:
    source = detector()
    before = whole(source.graph).SerializeToString(deterministic=True)
    known_part(source)
    assert whole(source.graph).SerializeToString(deterministic=True) == before
    assert onnx.ModelProto.FromString(before).graph.node
