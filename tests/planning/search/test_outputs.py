"""Which outputs stay quantized when not all can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from qcompiler.ir import model as models
from qcompiler.judge.views import views_of
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.placement import candidates
from qcompiler.planning.search import outputs
from qcompiler.planning.search.outputs import _extend, _most, without_unfused
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model, to_graph

EYE = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
NAMES = [f"t{i}" for i in range(16)]


def test_the_few_that_cost_most_are_found() -> None:
    bad = {"t3", "t11"}
    asked: list[int] = []

    def good(names: Sequence[str]) -> bool:
        asked.append(len(names))
        return not bad & set(names)

    assert set(_most(NAMES, good)) == set(NAMES) - bad
    assert len(asked) < len(NAMES) + 8


def test_all_stay_where_all_are_good() -> None:
    assert _most(NAMES, lambda names: True) == NAMES


def test_none_stays_where_none_is_good() -> None:
    assert _most(NAMES, lambda names: False) == []


def test_a_clip_belongs_to_the_convolution_before_it_and_a_graph_output_to_the_user() -> None:
    graph = to_graph(_two())
    found = candidates.find_candidates(graph, parse_target("onnxruntime"))[0]
    assert outputs.tensors_for_outputs(graph, found) == ["r", "y"]


def test_a_convolution_without_a_quantized_output_goes_back_to_float() -> None:
    plan = Plan.of(Decision(node, "Conv", DType.INT8, "linear", "") for node in ("C", "Y")).with_(
        axes={"C": 0, "Y": 0},
        quantizers={
            reads: Quantizer(reads, DType.INT8, 1.0, "test", 1.0, (0.0, 1.0), whole=reads == "r")
            for reads in ("x", "r")
        },
    )
    found = without_unfused(plan, to_graph(_two()))
    assert {one.node: one.rule for one in found} == {"C": "linear", "Y": "unfused"}
    assert found.precision("Y") is DType.FP32
    assert set(found.quantizers) == {"x", "r"}
    assert set(found.axes) == {"C"}


def test_fp8_layers_and_weights_that_alone_are_int8_are_left_as_they_are() -> None:
    decisions = [Decision("C", "Conv", DType.FP8, "linear", ""), Decision("Y", "Conv", DType.FP32, "qfem", "")]
    quantizers = {"x": Quantizer("x", DType.FP8, 1.0, "test", 1.0)}
    plan = Plan.of(decisions).with_(axes={"C": 0, "Y": 0}, quantizers=quantizers)
    graph = to_graph(_two())
    histograms = {"x": Histogram.of(np.linspace(0, 1, 9, dtype=np.float32))}
    found = without_unfused(_extend(plan, graph, histograms, "minmax", ()), graph)
    assert (found.quantizers, found.axes, found.decisions) == (plan.quantizers, plan.axes, plan.decisions)


def test_the_largest_values_are_kept_where_a_maximum_reads_nothing_else(tmp_path: Path) -> None:
    picks = ("GlobalMaxPool", "r", "y")
    proto = model(("Conv", "x w", "c"), ("Relu", "c", "r"), picks, inputs={"x": (1, 8, 64, 64)}, weights={"w": EYE})
    onnx.save(proto, tmp_path / "m.onnx")
    loaded, rng = models.load(tmp_path / "m.onnx"), np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 8, 64, 64)).astype(np.float32)} for _ in range(6)]
    for feed in feeds:
        feed["x"][0, 0, 3, 5] = 9.0
    all_of = Histogram.of(np.concatenate([feed["x"] for feed in feeds]))
    above = Histogram.of(np.maximum(np.concatenate([feed["x"] for feed in feeds]), 0))
    plan = Plan.of([Decision("C", "Conv", DType.INT8, "linear", "")]).with_(
        axes={"C": 0}, quantizers={"x": Quantizer("x", DType.INT8, 9.0, "minmax", 9.0)}
    )
    found = outputs.add(
        plan,
        loaded,
        {"x": all_of, "r": above},
        {},
        feeds,
        ranges=("percentile{p=99.99}", "minmax"),
        target_db=20.0,
        views=views_of(loaded.graph),
    )
    assert found.quantizers["r"].calibrator == "minmax"
    assert found.quantizers["r"].amax == 9.0


def _two() -> onnx.ModelProto:

    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    return model(
        ("Conv", "x w", "c"),
        ("Relu", "c", "r"),
        ("Conv", "r v", "y"),
        inputs={"x": (1, 16, 9, 9)},
        weights={"w": weight, "v": weight * 2},
    )
