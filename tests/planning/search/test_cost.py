"""The model of cost: what a group of layers moves and takes, held against the traffic of real plans."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.engines.roofline import Roofline, roofline
from qcompiler.ir import model as models
from qcompiler.passes.pipelines import clean_up, lowering
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.placement import candidates
from qcompiler.planning.search import cost
from qcompiler.planning.search.cost import Costs
from qcompiler.runtime import shapes
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.statistics.ranges import measure
from qcompiler.target import DType, Target, parse_target
from tests.kit.rewrite import model

TARGET = parse_target("tensorrt-rtx:sm89")
RNG = np.random.default_rng(12)


def weights(**sizes: tuple[int, ...]) -> dict[str, Any]:
    return {name: (RNG.standard_normal(size) / 8).astype(np.float32) for name, size in sizes.items()}


def convnet() -> onnx.ModelProto:
    """A convolution, a depthwise one and a pointwise one, each with a Relu, as in a mobile network."""
    return model(
        ("Conv", "x w1", "c1", {"pads": [1] * 4}),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1] * 4, "group": 64}),
        ("Relu", "c2", "r2"),
        ("Conv", "r2 w3", "c3"),
        ("Relu", "c3", "r3"),
        ("Conv", "r3 w4", "y"),
        inputs={"x": (8, 16, 56, 56)},
        weights=weights(w1=(64, 16, 3, 3), w2=(64, 1, 3, 3), w3=(96, 64, 1, 1), w4=(32, 96, 1, 1)),
        opset=21,
    )


def encoder() -> onnx.ModelProto:
    """Norm, projection, GELU's skeleton, projection, residual sum, norm, projection."""
    return model(
        ("LayerNormalization", "x g", "n", {"axis": -1}),
        ("MatMul", "n w1", "a"),
        ("Sigmoid", "a", "s"),
        ("Mul", "a s", "b"),
        ("MatMul", "b w2", "c"),
        ("Add", "c x", "d"),
        ("LayerNormalization", "d g", "e", {"axis": -1}),
        ("MatMul", "e w3", "y"),
        inputs={"x": (512, 256)},
        weights=weights(w1=(256, 1024), w2=(1024, 256), w3=(256, 256), g=(256,)),
        opset=21,
    )


class Bench:
    """A model with its candidates and shapes."""

    def __init__(self, folder: Path, proto: onnx.ModelProto) -> None:
        onnx.save(proto, folder / "m.onnx")
        self.folder, self.model = folder, models.load(folder / "m.onnx")
        clean_up(TARGET)(self.model.graph)
        shapes.infer(self.model)
        self.found, _ = candidates.find_candidates(self.model.graph, TARGET)
        self.groups = candidates.by_activation(self.found)
        size = tuple(int(dim) for dim in self.model.graph.inputs[0].shape)
        self.feed = {"x": RNG.standard_normal(size).astype(np.float32)}
        self.shapes = concrete_shapes(self.model.graph, self.feed, cost.tensors_for_costs(self.model.graph, self.found))

    def costs(self, target: Target = TARGET, *, per_channel: bool = True) -> Costs:
        return Costs(self.model.graph, self.shapes, target, per_channel=per_channel, fp8_per_channel=per_channel)

    def bytes(self, dtype: DType, *, per_channel: bool = True) -> float:
        costs = self.costs(per_channel=per_channel)
        return sum(costs.bytes(name, members, dtype) for name, members in self.groups.items())

    def listed(self, dtype: DType, *, per_channel: bool = True) -> Roofline:
        """What TensorRT-RTX makes of it."""
        from qcompiler.engines import for_target

        found = self.found if dtype.quantized else ()
        plan = Plan.of(Decision(one.node, one.op, dtype, "linear", "") for one in found).with_(
            axes={one.node: one.axis if per_channel else None for one in found},
            quantizers={one.activation: Quantizer(one.activation, dtype, 4.0, "test", 4.0) for one in found},
        )
        lowered = models.copy(self.model)
        lowering(plan, TARGET, measure(self.model, [self.feed]), {})(lowered.graph)
        models.save(lowered, self.folder / "low.onnx")
        for_target(TARGET).build(self.folder / "low.onnx", self.folder / "low.engine")
        return roofline(self.folder / "low.engine")


@pytest.mark.parametrize("proto", [convnet, encoder])
def test_what_quantization_adds_to_the_traffic_is_what_the_listing_of_the_plan_says(tmp_path: Path, proto: Any) -> None:
    bench = Bench(tmp_path, proto())
    base = bench.listed(DType.FP16)
    assert base.unsized == 0
    for dtype, per_channel in ((DType.INT8, True), (DType.FP8, False)):
        listed = bench.listed(dtype, per_channel=per_channel).bytes - base.bytes
        predicted = bench.bytes(dtype, per_channel=per_channel) - bench.bytes(DType.FP16)
        assert predicted == pytest.approx(listed, abs=0.15 * base.bytes)


def test_int8_convolutions_with_a_scale_per_channel_move_more_than_half_precision(tmp_path: Path) -> None:
    bench = Bench(tmp_path, convnet())
    assert bench.bytes(DType.INT8) > bench.bytes(DType.INT8, per_channel=False) > bench.bytes(DType.FP16)
    costs = bench.costs()
    assert costs.seconds("r2", bench.groups["r2"], DType.INT8) > costs.seconds("r2", bench.groups["r2"], DType.FP16)
    fused = bench.costs(parse_target("tensorrt:sm89"))
    assert fused.seconds("r2", bench.groups["r2"], DType.INT8) < fused.seconds("r2", bench.groups["r2"], DType.FP16)


def test_a_gpu_without_a_format_takes_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path, encoder())
    members = bench.groups["n"]
    assert math.isinf(bench.costs(parse_target("tensorrt-rtx:sm86")).seconds("n", members, DType.FP8))
    assert math.isinf(bench.costs(parse_target("tensorrt-rtx:sm86,sm89")).seconds("n", members, DType.FP8))
    two = bench.costs(parse_target("tensorrt-rtx:sm89,sm120"))
    each = [bench.costs(parse_target(f"tensorrt-rtx:{sm}")).seconds("n", members, DType.INT8) for sm in FP8_RTX]
    assert two.seconds("n", members, DType.INT8) == pytest.approx(sum(each) / 2)
    assert two.where == "sm89 and sm120"


FP8_RTX = ("sm89", "sm120")


def test_siblings_are_one_product_that_reads_their_activation_once(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w1", "q"),
        ("MatMul", "x w2", "k"),
        inputs={"x": (64, 32)},
        outputs=("q", "k"),
        weights=weights(w1=(32, 32), w2=(32, 32)),
        opset=21,
    )
    bench = Bench(tmp_path, proto)
    products = [one for one in bench.costs().kernels("x", bench.groups["x"], DType.FP16) if one.macs]
    assert [one.macs for one in products] == [2 * 64 * 32 * 32]
    assert products[0].bytes == 2 * (64 * 32 + 2 * 32 * 32 + 2 * 64 * 32)
