"""quantize-outputs: what ONNX Runtime makes of the graph, what it computes, and that TensorRT graphs never see it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import qcompiler
from qcompiler.ir import graph as graphs
from qcompiler.ir.qdq import pairs, scale_of
from qcompiler.ir.signature import Feeds
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.passes.base import Changed, Fact, Pipeline
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.passes.quantize.quantize_outputs import QuantizeOutputs
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import model, to_graph, whole

RNG = np.random.default_rng(11)


def _weight(*shape: int) -> NDArray[np.float32]:
    values: NDArray[np.float64] = RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def _residual() -> onnx.ModelProto:
    """Conv, Clip, Conv, Add of a shortcut, Conv, HardSwish written out, mean over the pixels, Gemm."""
    pads = {"pads": [1, 1, 1, 1]}
    return model(
        ("Conv", "x w1 b1", "c1", pads),
        ("Clip", "c1 zero six", "r1"),
        ("Conv", "r1 w2 b1", "c2", pads),
        ("Add", "c2 r1", "sum"),
        ("Conv", "sum w3 b1", "c3", pads),
        ("Add", "c3 three", "plus"),
        ("Clip", "plus zero six", "clipped"),
        ("Mul", "c3 clipped", "times"),
        ("Div", "times sixes", "swish"),
        ("Conv", "swish w4 b1", "c4", pads),
        ("GlobalAveragePool", "c4", "mean"),
        ("Flatten", "mean", "flat"),
        ("Gemm", "flat wg bg", "y", {"transB": 1}),
        inputs={"x": ("n", 16, 12, 12)},
        weights={
            **{f"w{i}": _weight(16, 16, 3, 3) for i in (1, 2, 3, 4)},
            "b1": _weight(16, 1)[:, 0],
            "wg": _weight(20, 16),
            "bg": _weight(20, 1)[:, 0],
            "zero": np.float32(0),
            "six": np.float32(6),
            "three": np.array([3], np.float32),
            "sixes": np.array([6], np.float32),
        },
    )


def _feeds(count: int = 32) -> list[Feeds]:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((1, 16, 12, 12)).astype(np.float32)} for _ in range(count)]


class Compiled:
    def __init__(self, folder: Path, target: str, **options: object) -> None:
        self.source, self.path = folder / "m.onnx", folder / f"{target}.qdq.onnx"
        onnx.save(_residual(), self.source)
        # what is quantized is to be seen: a mean of noise hardly varies, and little noise is much beside that
        recipe = Recipe(target=target, safety=SafetyTable(target_sqnr_db=10), **options)  # type: ignore[arg-type]
        self.result = qcompiler.quantize(self.source, data=_feeds(), recipe=recipe, output=self.path)
        self.plan: Plan = self.result.plan
        self.proto = onnx.load(self.path)

    def optimised(self) -> Counter[str]:
        """Operators that ONNX Runtime's CPU provider really runs."""
        options, path = ort.SessionOptions(), self.path.with_suffix(".optimised.onnx")
        options.optimized_model_filepath, options.log_severity_level = str(path), 4
        ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    def zero_points(self) -> set[str]:
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        return {str(arrays[node.input[2]].dtype) for node in self.proto.graph.node if node.op_type == "QuantizeLinear"}


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("cpu"), "onnxruntime")


def test_onnx_runtime_runs_every_convolution_in_int8(cpu: Compiled) -> None:
    found = cpu.optimised()
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Clip", "Div"} & set(found)


def test_activations_are_unsigned_and_weights_signed(cpu: Compiled) -> None:
    assert cpu.zero_points() == {"uint8"}
    stored = {t.data_type for t in cpu.proto.graph.initializer if t.name.endswith("/int8")}
    assert stored == {onnx.TensorProto.INT8}


def test_the_outputs_stay_close(cpu: Compiled) -> None:
    plain, quantized = Session(cpu.source), Session(cpu.path)
    for feed in _feeds(2):
        expected = plain.run(feed)["y"]
        assert sqnr_of(expected, expected - quantized.run(feed)["y"]) > 20


def test_the_fused_model_computes_what_the_file_says(cpu: Compiled) -> None:
    fused, written = Session(cpu.path), Session(cpu.path, optimize=False)
    for feed in _feeds(2):
        expected = written.run(feed)["y"]
        # one step of some grid may round the other way
        assert sqnr_of(expected, expected - fused.run(feed)["y"]) > 35


def test_a_second_run_changes_nothing(cpu: Compiled) -> None:
    graph = to_graph(cpu.proto)
    before = whole(graph).SerializeToString(deterministic=True)
    report = QuantizeOutputs(cpu.plan)(graph)
    assert not [note for note in report.notes if isinstance(note, Changed)]
    assert whole(graph).SerializeToString(deterministic=True) == before


def test_the_plan_reads_back_with_its_unsigned_grids(cpu: Compiled) -> None:
    again = Plan.from_json(cpu.plan.to_json())
    assert again.quantizers == cpu.plan.quantizers
    assert all(quantizer.span is not None for quantizer in again.quantizers.values())


def test_biases_are_stored_in_units_of_the_accumulator(cpu: Compiled) -> None:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in cpu.proto.graph.initializer}
    producers = {node.output[0]: node for node in cpu.proto.graph.node}
    convs = [node for node in cpu.proto.graph.node if node.op_type == "Conv"]
    for node in convs:
        x, w, bias = (producers[name] for name in node.input)
        assert arrays[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(arrays[bias.input[1]], arrays[x.input[1]] * arrays[w.input[1]], rtol=1e-6)


def test_too_much_loss_leaves_outputs_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.planning.search.outputs.LOSS_DB", -200.0)
    monkeypatch.setattr("qcompiler.planning.search.outputs.SLACK_DB", -100.0)
    strict = Compiled(tmp_path, "onnxruntime", allow_broken=True)  # nothing is left that is quantized
    assert [one.rule for one in strict.plan if one.op == "Conv"] == ["unfused"] * 4
    assert not any(quantizer.whole for quantizer in strict.plan.quantizers.values())


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt"])
def test_tensorrt_never_sees_unsigned_integers(tmp_path: Path, target: str) -> None:
    made = Compiled(tmp_path, target)
    assert made.zero_points() == {"int8"}
    assert not any(q.whole or q.span for q in made.plan.quantizers.values())
    convs = [node for node in made.result.model.graph.nodes if node.op == "Conv"]
    assert not [
        node for node in convs if any(graphs.is_op(r, "QuantizeLinear") for r, _ in graphs.consumers(node.outputs[0]))
    ]


@pytest.mark.parametrize("size", [1e-39, 1e-25, 0.0], ids=["denormal", "tiny", "zero"])
def test_vanishing_weights_and_activations_have_scales_that_the_target_takes(size: float) -> None:
    weights = {"w": (size * _weight(16, 16, 3, 3)).astype(np.float32), "b": np.zeros(16, np.float32)}
    graph = to_graph(model(("Conv", "x w b", "y"), inputs={"x": ("n", 16, 12, 12)}, weights=weights))
    quantizer = Quantizer("x", DType.INT8, 1e-25, "test", 1e-25, span=(0.0, 1e-25))
    decision = Decision("Y", "Conv", DType.INT8, "linear", "")
    plan = Plan.of([decision]).with_(axes={"Y": 0}, quantizers={"x": quantizer})
    given = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    Pipeline(InsertQDQ(plan), QuantizeOutputs(plan), given=given)(graph)
    found = [scale for node in pairs(graph) if (scale := scale_of(node)) is not None]
    assert len(found) == 4
    assert all((one >= np.finfo(np.float32).smallest_normal).all() for one in found)
