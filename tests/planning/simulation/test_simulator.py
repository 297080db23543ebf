"""The simulator: every subset of layers quantized gives what the real quantized graph gives."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.numerics.rounding import dequantize, quantize_fp8_e4m3
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.plan import Candidate, Decision, FittedWeight, Plan, Quantizer
from qcompiler.planning.placement import candidates
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.simulator import FORMATS, Simulator, Use
from qcompiler.runtime.session import Session
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model

RNG = np.random.default_rng(4)
TARGET = parse_target("tensorrt-rtx")


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def convnet() -> onnx.ModelProto:
    """Two convolutions that read x, a sum, a third one; weights of the second behind a Transpose."""
    return model(
        ("Conv", "x w1 b1", "c1", {"pads": [1] * 4}),
        ("Transpose", "w2", "t", {"perm": [1, 0, 2, 3]}),
        ("Conv", "x t", "c2", {"pads": [1] * 4}),
        ("Add", "c1 c2", "s"),
        ("Relu", "s", "r"),
        ("Conv", "r w3", "y", {"group": 4}),
        inputs={"x": (1, 3, 8, 8)},
        weights=weights(w1=(16, 3, 3, 3), b1=(16,), w2=(3, 16, 3, 3), w3=(8, 4, 3, 3)),
        opset=21,
    )


def mlp() -> onnx.ModelProto:
    return model(
        ("MatMul", "x w1", "a"),
        ("Gemm", "a w2 b2", "b", {"transB": 1}),
        ("Relu", "b", "c"),
        ("MatMul", "c w3", "y"),
        inputs={"x": (6, 32)},
        weights=weights(w1=(32, 24), w2=(40, 24), b2=(40,), w3=(40, 16)),
        opset=21,
    )


def int8(amax: dict[str, float]) -> dict[str, Use]:
    return {name: Use(DType.INT8, value) for name, value in amax.items()}


class Bench:
    """A model, its candidates by activation, two feeds, and a simulator."""

    def __init__(self, folder: Path, proto: onnx.ModelProto, *, per_channel: bool = True) -> None:
        onnx.save(proto, folder / "m.onnx")
        self.model, self.per_channel = models.load(folder / "m.onnx"), per_channel
        found, _ = candidates.find_candidates(self.model.graph, TARGET)
        self.groups = candidates.by_activation(found)
        shape = tuple(int(dim) for dim in self.model.graph.inputs[0].shape)
        self.feeds = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(2)]
        self.amax = dict.fromkeys(self.groups, 2.5)
        ranges = {name: [2.5, 4.0] for name in self.groups}
        self.shifts = Shifts(
            self.model,
            self.groups,
            ranges,
            self.feeds,
            per_channel=per_channel,
            fp8=ranges,
            fp8_per_channel=per_channel,
        )
        self.simulator = Simulator(
            self.model,
            self.groups,
            self.shifts,
            per_channel=per_channel,
            dtypes=(DType.FP8, DType.INT8),
            fp8_per_channel=per_channel,
        )

    def real(self, uses: dict[str, Use]) -> models.Model:
        """The graph that the compiler would write for these groups."""
        plan, corrections = self.planned(uses), {}
        for name, use in uses.items():
            for one in self.groups[name]:
                if self.shifts.can(one):
                    corrections[one.node] = self.shifts.of(one, use.amax, use.dtype)
        lowered = models.copy(self.model)
        InsertQDQ(plan, corrections)(lowered.graph)
        return lowered

    def planned(self, uses: dict[str, Use]) -> Plan:
        """The plan that quantizes these groups."""
        plan = Plan()
        for name, use in uses.items():
            own = {name: Quantizer(name, use.dtype, use.amax, "test", use.amax)}
            plan = plan.with_(quantizers={**plan.quantizers, **own})
            for one in self.groups[name]:
                plan = plan.deciding(Decision(one.node, one.op, use.dtype, "linear", ""))
                plan = plan.with_(axes={**plan.axes, one.node: one.axis if self.per_channel else None})
        return plan


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("proto", [convnet(), mlp()], ids=["conv", "mlp"])
def test_every_subset_gives_what_the_real_graph_gives(
    tmp_path: Path, proto: onnx.ModelProto, per_channel: bool
) -> None:
    bench = Bench(tmp_path, proto, per_channel=per_channel)
    names = list(bench.groups)
    for formats in itertools.product((None, DType.INT8, DType.FP8), repeat=len(names)):
        uses = {name: Use(one, 2.5) for name, one in zip(names, formats, strict=True) if one is not None}
        found = bench.simulator.run(bench.feeds[0], uses)["y"]
        expected = Session(bench.real(uses), quick=True).run(bench.feeds[0])["y"]
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtypes", [(DType.FP8,), (DType.INT8, DType.FP8)])
def test_fp8_rounds_as_its_format_does_to_the_bit(tmp_path: Path, dtypes: tuple[DType, ...]) -> None:
    grid = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = (grid[1:] + grid[:-1]) / 2
    near = np.nextafter(np.concatenate([ties, ties]), np.repeat(np.asarray([0, 1000], np.float32), len(ties)))
    wild = RNG.standard_normal(1000) * 10 ** RNG.uniform(-6, 6, 1000)
    far = [0.0, 463.9, 464, 465, 1e30, np.inf, 1e-30]
    values = np.concatenate([grid, ties, near, wild, far]).astype(np.float32)
    values = np.concatenate([values, -values])[:, None]
    proto = model(("MatMul", "x w", "y"), inputs={"x": ("n", 1)}, weights={"w": np.ones((1, 1), np.float32)})
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    groups = {"x": [Candidate("Y", "MatMul", "x", "w", None)]}
    simulator = Simulator(loaded, groups, Shifts(loaded, groups, {}, []), dtypes=dtypes)
    for scale in (1.0, 0.3, 2.0**-20):
        found = simulator.run({"x": values}, {"x": Use(DType.FP8, 448 * scale)})["y"]
        expected = dequantize(quantize_fp8_e4m3(values, scale), scale)
        np.testing.assert_array_equal(found, expected)


def test_a_format_that_was_not_announced_cannot_be_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mlp())
    simulator = Simulator(bench.model, bench.groups, bench.shifts)
    with pytest.raises(ValueError, match="fp8"):
        simulator.run(bench.feeds[0], {"x": Use(DType.FP8, 2.5)})


def test_given_scales_are_those_of_the_int8_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mlp(), per_channel=False)
    wide = {one.node: np.array(0.5, np.float32) for members in bench.groups.values() for one in members}
    coarse = Simulator(bench.model, bench.groups, bench.shifts, per_channel=False, dtypes=FORMATS, scales=wide)
    feed, uses = bench.feeds[0], int8(bench.amax)
    assert np.abs(coarse.run(feed, uses)["y"] - bench.simulator.run(feed, uses)["y"]).max() > 0.1
    eights = {name: Use(DType.FP8, 2.5) for name in bench.amax}
    expected = Simulator(bench.model, bench.groups, bench.shifts, dtypes=FORMATS).run(feed, eights)["y"]
    np.testing.assert_array_equal(coarse.run(feed, eights)["y"], expected)


def test_nothing_quantized_is_the_float_model_to_the_bit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, convnet())
    expected = Session(bench.model, quick=True).run(bench.feeds[0])["y"]
    np.testing.assert_array_equal(bench.simulator.run(bench.feeds[0], {})["y"], expected)


def test_one_session_takes_any_range(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mlp())
    results = [bench.simulator.run(bench.feeds[0], int8({"x": value}))["y"] for value in (2.5, 4.0, 2.5)]
    assert np.abs(results[0] - results[1]).max() > 1e-4
    np.testing.assert_array_equal(results[0], results[2])


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, convnet())
    assert [node.op for node in bench.model.graph.nodes] == ["Conv", "Transpose", "Conv", "Add", "Relu", "Conv"]
    assert bench.groups.keys() == {"x", "r"}


def test_a_softmax_output_is_judged_by_what_it_is_computed_from(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w", "logits"),
        ("Softmax", "logits", "y", {"axis": -1}),
        inputs={"x": (6, 32)},
        weights=weights(w=(32, 20)),
    )
    bench = Bench(tmp_path, proto)
    assert bench.simulator.outputs == ["logits"]
    found = bench.simulator.run(bench.feeds[0], {})["logits"]
    logits = Session(bench.model, outputs=["logits"]).run(bench.feeds[0])["logits"]
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert [view.level for view in bench.simulator.views] == [-1]


def test_outputs_that_are_not_float_are_not_compared(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w", "a"),
        ("ArgMax", "a", "k", {"axis": 1}),
        inputs={"x": (6, 32)},
        outputs=("k", "a"),
        weights=weights(w=(32, 20)),
    )
    assert Bench(tmp_path, proto).simulator.outputs == ["a"]


def test_a_bias_that_is_computed_is_not_corrected(tmp_path: Path) -> None:
    proto = model(
        ("ReduceMax", "x", "m", {"axes": [0, 2, 3], "keepdims": 0}),
        ("Conv", "x w m", "y"),
        inputs={"x": (1, 8, 12, 12)},
        weights=weights(w=(8, 8, 1, 1)),
    )
    bench = Bench(tmp_path, proto)
    (one,) = bench.groups["x"]
    assert not bench.shifts.can(one)
    assert not bench.shifts.of(one, 2.5).any()
    expected = Session(bench.real(int8(bench.amax)), quick=True).run(bench.feeds[0])["y"]
    np.testing.assert_allclose(bench.simulator.run(bench.feeds[0], int8(bench.amax))["y"], expected, atol=2e-4)


def test_bias_correction_brings_the_mean_of_each_channel_back(tmp_path: Path) -> None:
    proto = model(("Conv", "x w", "y"), inputs={"x": (1, 8, 12, 12)}, weights=weights(w=(16, 8, 1, 1)))
    bench = Bench(tmp_path, proto)
    bench.feeds = [{"x": (one["x"] + 1).astype(np.float32)} for one in bench.feeds]  # clipped at 2.5 on one side
    shifts = Shifts(bench.model, bench.groups, {"x": [2.5]}, bench.feeds)
    corrected = Simulator(bench.model, bench.groups, shifts)

    def moved(simulator: Simulator, amax: dict[str, float]) -> Any:
        exact = np.concatenate([simulator.run(feed, {})["y"] for feed in bench.feeds])
        return (np.concatenate([simulator.run(feed, int8(amax))["y"] for feed in bench.feeds]) - exact).mean(
            axis=(0, 2, 3)
        )

    (one,) = bench.groups["x"]
    assert np.abs(moved(corrected, {"x": 2.5})).max() < 1e-4
    assert np.abs(shifts.of(one, 2.5)).max() > 0.01
    assert shifts.of(one, 9.9).tolist() == [0]  # a range nobody announced


def test_fitted_weights_are_what_the_simulator_and_the_graph_take(tmp_path: Path) -> None:
    bench = Bench(tmp_path, mlp())
    shapes = {name: array.shape for name, array in weights(w1=(32, 24), w2=(40, 24), w3=(40, 16)).items()}
    made: dict[str, FittedWeight] = {}
    for one in (one for members in bench.groups.values() for one in members):
        assert one.axis is not None
        shape = shapes[one.weight]
        values = RNG.integers(-127, 128, shape).astype(np.int8)
        made[one.node] = FittedWeight(values, np.full(shape[one.axis], 0.01, np.float32))
    groups = {name: [replace(one, fitted=made[one.node]) for one in members] for name, members in bench.groups.items()}
    simulator = Simulator(bench.model, groups, bench.shifts)
    uses = int8(bench.amax)
    plan = bench.planned(uses)
    lowered = models.copy(bench.model)
    InsertQDQ(plan, fitted=made)(lowered.graph)
    expected = Session(lowered, quick=True).run(bench.feeds[0])["y"]
    np.testing.assert_allclose(simulator.run(bench.feeds[0], uses)["y"], expected, atol=2e-3, rtol=1e-4)
    float_y = Session(bench.model, quick=True).run(bench.feeds[0])["y"]
    np.testing.assert_allclose(simulator.run(bench.feeds[0], {})["y"], float_y, atol=2e-3, rtol=1e-4)
    whole = Simulator(bench.model, groups, bench.shifts, per_channel=False).run(bench.feeds[0], uses)["y"]
    assert not np.allclose(whole, expected, atol=0.1)  # a single scale is another grid
