"""What is planned instead, where quantized layers are predicted to cost more than they save."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.engines.prediction import Prediction
from qcompiler.engines.rates import Kernel, gpus
from qcompiler.engines.roofline import PricedLaunch, Roofline
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.costly import MOST, RULE, Descent, all_high, regions
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.target import DType
from tests.kit.rewrite import model, to_graph

GPUS = [gpus()["sm86"], gpus()["sm89"]]
LAYERS = {"A": "x", "B": "r", "C": "b"}  # with the tensor that each reads
OURS = frozenset(LAYERS)


def graph() -> gs.Graph:
    nodes = [("MatMul", "x w", "a"), ("Relu", "a", "r"), ("MatMul", "r w", "b"), ("MatMul", "b w", "c")]
    return to_graph(model(*nodes, inputs={"x": (4, 32)}, outputs=["c"], weights={"w": np.ones((32, 32), np.float32)}))


def chosen(axis: int | None = None) -> Chosen:
    plan = Plan.of(Decision(name, "MatMul", DType.INT8, "linear", "why", 8) for name in LAYERS)
    return Chosen(
        plan.with_(
            axes=dict.fromkeys(LAYERS, axis),
            quantizers={name: Quantizer(name, DType.INT8, 1.0, "minmax", 1.0) for name in LAYERS.values()},
        ),
        SafetyNet(),
    )


class Machine:
    """An engine whose layers take so many bytes in float, in INT8, and in INT8 with a scale per channel."""

    def __init__(self, **costs: tuple[float, float, float]) -> None:
        self.costs, self.built = costs, 0

    def roofline(self, plan: Plan) -> Roofline:
        launches = [PricedLaunch("relu", ("R",), Kernel(0, DType.FP32, 1e5), False)]
        for layer, (high, single, wide) in self.costs.items():
            low = plan.precision(layer) is DType.INT8
            cost = (single if plan.axes.get(layer) is None else wide) if low else high
            pair = (f"{LAYERS[layer]}/DequantizeLinear",) if low else ()
            launches.append(PricedLaunch(layer, (layer, *pair), Kernel(0, DType.FP32, cost), False))
        return Roofline(tuple(launches))

    def price(self, other: Chosen) -> Prediction:
        self.built += 1
        high = self.roofline(Plan())
        return Prediction(DType.FP16, high, self.roofline(other.plan), GPUS)


def high_ones(plan: Plan) -> set[str]:
    return {one.node for one in plan if one.precision is DType.FP16}


def searched(machine: Machine, start: Chosen, ours: Collection[str] = OURS, least: float = 0.0) -> list[Chosen]:
    now = machine.price(start)
    found = Descent(start, graph(), frozenset(ours), DType.FP16, now, machine.price, least).found()
    assert all(one.prediction.ratio < min(1.0, now.ratio) for one in found)
    ratios = [one.prediction.ratio for one in found]
    assert ratios == sorted(ratios)
    return [one.chosen for one in found]


def test_the_layers_that_lose_time_go_back_and_the_others_stay() -> None:
    machine = Machine(A=(9e6, 2e6, 2e6), B=(1e6, 5e6, 5e6), C=(9e6, 3e6, 3e6))
    (best,) = searched(machine, chosen())
    assert high_ones(best.plan) == {"B"}
    assert best.plan.decisions["B"].rule == RULE
    assert "longer than in float; why" in best.plan.decisions["B"].why
    assert list(best.plan.quantizers) == ["x", "b"]
    assert machine.built <= 1 + MOST


def test_one_scale_for_a_weight_is_offered_beside_it() -> None:
    machine = Machine(A=(9e6, 2e6, 8e6), B=(5e6, 2e6, 7e6), C=(9e6, 3e6, 3e6))
    single, wide = searched(machine, chosen(axis=1))
    assert single.plan.axes == {"A": None, "B": None, "C": 1}  # it saves nothing at C
    assert high_ones(single.plan) == set()
    assert single.plan.decisions["A"].why.startswith("one weight scale")
    assert high_ones(wide.plan) == {"B"}
    assert wide.plan.axes == {"A": 1, "C": 1}


def test_where_nothing_is_faster_quantized_there_is_no_such_plan() -> None:
    machine = Machine(A=(1e6, 2e6, 2e6), B=(1e6, 2e6, 2e6), C=(1e6, 2e6, 2e6))
    start = chosen(axis=1)
    assert searched(machine, start) == []
    floats = all_high(start, graph(), OURS, DType.FP16, machine.price(start))
    assert high_ones(floats.plan) == OURS
    assert floats.plan.quantizers == {}
    assert "times as long quantized" in floats.plan.decisions["A"].why


def test_what_is_not_ours_and_the_share_that_was_asked_for_stay_quantized() -> None:
    machine = Machine(A=(9e6, 2e6, 2e6), B=(1e6, 5e6, 5e6), C=(1e6, 2e6, 2e6))
    (best,) = searched(machine, chosen(), ours={"A", "C"})
    assert high_ones(best.plan) == {"C"}
    assert searched(machine, chosen(), least=0.9) == []


def test_rounding_belongs_to_who_reads_it_unless_a_layers_own_kernel_does_it() -> None:
    def launch(name: str, *nodes: str) -> PricedLaunch:
        return PricedLaunch(name, nodes, Kernel(0, DType.FP32, 1e6), False)

    engine = Roofline(
        (
            launch("round x", "x/QuantizeLinear"),
            launch("a", "A", "x/DequantizeLinear"),
            launch("scale a, relu, round r", "A", "R", "r/QuantizeLinear"),
            launch("b", "B", "r/DequantizeLinear"),
        )
    )
    high = Roofline((launch("a, relu", "A", "R"), launch("b", "B")))
    found = {region.nodes: region.lost for region in regions(engine, high, GPUS, {"A", "R", "B"}, {"A", "B"})}
    assert found.keys() == {frozenset({"A", "R"}), frozenset({"B"})}
    one = Kernel(0, DType.FP32, 1e6).seconds(GPUS[0])
    assert found[frozenset({"A", "R"})]["sm86"] == pytest.approx(2 * one)
    assert found[frozenset({"B"})]["sm86"] == pytest.approx(0)


def test_a_fusion_that_is_broken_is_lost_by_the_layer_next_to_it() -> None:
    class Broken(Machine):
        def roofline(self, plan: Plan) -> Roofline:
            found = super().roofline(plan).launches[1:]
            cost = 1e7 if plan.precision("A") is DType.INT8 else 1e5
            return Roofline((PricedLaunch("relu", ("R",), Kernel(0, DType.FP32, cost), False), *found))

    machine = Broken(A=(2e6, 1e6, 1e6), B=(9e6, 1e6, 1e6), C=(9e6, 3e6, 3e6))
    (best,) = searched(machine, chosen())
    assert "A" in high_ones(best.plan)
    assert "C" not in high_ones(best.plan)


def test_where_one_scale_for_all_is_too_coarse_the_weights_that_lose_least_have_one() -> None:
    machine = Machine(A=(9e6, 2e6, 8e6), B=(9e6, 2e6, 8e6), C=(9e6, 3e6, 3e6))
    start = chosen(axis=1)
    rng = np.random.default_rng(0)
    flat, spiky = (rng.uniform(-1, 1, (32, 32)).astype(np.float32) for _ in range(2))
    spiky[0, 0] = 50.0
    nodes = [("MatMul", "x flat", "a"), ("Relu", "a", "r"), ("MatMul", "r spiky", "b"), ("MatMul", "b spiky", "c")]
    weights = {"flat": flat, "spiky": spiky}
    made = to_graph(model(*nodes, inputs={"x": (4, 32)}, outputs=["c"], weights=weights))
    search = Descent(start, made, OURS, DType.FP16, machine.price(start), machine.price)
    (best,) = search.with_few_scales()
    assert best.single == {"A"}  # nearly all of the error is that of B, and C saves nothing
    assert best.chosen.plan.axes == {"A": None, "B": 1, "C": 1}


def test_single_scales_go_to_who_saves_most_time_for_its_error() -> None:
    machine = Machine(A=(9e6, 7e6, 8e6), B=(9e6, 2e6, 8e6), C=(9e6, 6e6, 8e6))
    rng = np.random.default_rng(0)
    weights = {name: rng.uniform(-1, 1, (32, 32)).astype(np.float32) for name in ("u", "v", "w")}
    for values, peak in zip(weights.values(), (10.0, 12.0, 12.0), strict=True):
        values[0, 0] = peak
    nodes = [("MatMul", "x u", "a"), ("Relu", "a", "r"), ("MatMul", "r v", "b"), ("MatMul", "b w", "c")]
    made = to_graph(model(*nodes, inputs={"x": (4, 32)}, outputs=["c"], weights=weights))
    start = chosen(axis=1)

    def few(noise: dict[str, float]) -> frozenset[str]:
        begun = replace(start, net=SafetyNet(noise=noise))
        (best,) = Descent(begun, made, OURS, DType.FP16, machine.price(begun), machine.price).with_few_scales()
        return best.single

    assert few({}) == {"B"}  # the error of A would fit no more, and C saves a third of it for as much error
    assert few({"x": 1e-4, "r": 1e-2, "b": 1e-4}) == {"A", "C"}  # an error of B is what the outputs notice
