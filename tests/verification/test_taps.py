"""What is measured at the inner tensors: all error, and what a layer adds itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from qcompiler.ir import model as models
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.target import DType
from qcompiler.verification.replay import Replay
from qcompiler.verification.taps import TapNoise, energies, find_taps, measure, replayed
from tests.kit.rewrite import model, to_graph
from tests.kit.verification.chain import WEIGHTS, Samples, chain, changed

W = np.eye(4, dtype=np.float32)


def test_a_layer_behind_a_broken_one_adds_nothing_itself(tmp_path: Path) -> None:
    first = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    second = models.load(chain(tmp_path / "q.onnx", changed(1, 0.5)))
    found = measure(first, second, list(Samples(2)), find_taps(first.graph, second.graph, 96))
    assert [tap.name for tap in found.taps if tap.layer] == [f"h{k}" for k in range(5)]
    assert found.total["h0"].db == math.inf
    for name in ("h1", "h2", "h3", "h4"):
        assert found.total[name].db < 20
    assert found.own["h1"].db < 20
    for name in ("h0", "h2", "h3", "h4"):
        assert found.own[name].level == 0


def test_sums_that_several_nodes_read_and_outputs_are_borders(tmp_path: Path) -> None:
    graph = to_graph(
        model(
            ("MatMul", "x w", "a"),
            ("Add", "a x", "sum"),
            ("Relu", "sum", "r"),
            ("MatMul", "r w", "b"),
            ("Add", "b sum", "y"),
            inputs={"x": (2, 4)},
            outputs=("y",),
            weights={"w": W},
        )
    )
    taps = find_taps(graph, graph, 96)
    assert [(tap.name, tap.layer) for tap in taps] == [("a", True), ("sum", False), ("b", True), ("y", False)]
    one = models.Model(graph, {}, None, 10)
    found = measure(one, one, [{"x": np.ones((2, 4), np.float32)}], taps)
    assert dict(found.before) == {
        "a": frozenset(),
        "sum": {"a"},
        "b": {"sum"},
        "y": {"b", "sum"},
    }
    assert [tap.name for tap in found.ends] == ["b", "y"]


@pytest.mark.parametrize("shift", [True, False])
def test_the_product_of_an_activation_that_was_moved_means_something_else(shift: bool) -> None:
    """Its bias takes off what was added; what comes behind the bias is compared."""
    first = model(
        ("MatMul", "x w", "h"),
        ("Softplus", "h", "s"),
        ("MatMul", "s v", "p"),
        ("Add", "p b", "z"),
        ("MatMul", "z w", "y"),
        inputs={"x": (2, 4)},
        weights={"w": W, "v": 2 * W, "b": np.arange(4, dtype=np.float32)},
        opset=21,
    )
    graph, quantized = to_graph(first), to_graph(first)
    name = next(node.name for node in graph.nodes if node.outputs[0].name == "p")
    plan = Plan.of([Decision(name, "MatMul", DType.INT8, "linear", "")]).with_(
        quantizers={"s": Quantizer("s", DType.INT8, 3.0, "test", 3.0, (-0.1, 3.0))}, axes={name: 1}
    )
    InsertQDQ(plan, shift=shift)(quantized)
    taps = find_taps(graph, quantized, 96)
    assert [tap.name for tap in taps] == (["h", "y"] if shift else ["h", "p", "y"])
    first_model, second_model = (models.Model(one, {}, None, 10) for one in (graph, quantized))
    feeds = [{"x": np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)}]
    found = measure(first_model, second_model, feeds, taps)
    assert all(found.own[tap.name].db > 20 for tap in found.taps)


def test_a_quiet_channel_counts_as_much_as_a_loud_one() -> None:
    reference = np.stack([np.full(100, 1000.0), np.ones(100)]).astype(np.float32)
    got = reference.copy()
    got[1] = -1  # all of the quiet channel is wrong, a millionth of the energy
    noise = TapNoise(axis=0)
    noise.add(reference, got)
    assert noise.db > 50
    assert noise.level == pytest.approx(0.5)  # of two channels one is nothing but noise


def test_a_channel_without_a_signal_counts_by_its_energy_alone() -> None:
    reference = np.stack([np.ones(100), np.zeros(100)]).astype(np.float32)
    noise = TapNoise(axis=0)
    noise.add(reference, reference + np.array([[0.0], [1e-3]], np.float32))
    assert noise.level == pytest.approx(1e-6, rel=1e-3)


def test_what_is_not_finite_is_all_noise_and_what_the_reference_lacks_none() -> None:
    noise = TapNoise()
    noise.add(np.array([1.0, np.inf], np.float32), np.array([1.0, 3.0], np.float32))
    assert noise.level == 0
    noise.add(np.array([1.0, 2.0], np.float32), np.array([1.0, np.nan], np.float32))
    assert (noise.level, noise.db) == (math.inf, -math.inf)


def test_samples_with_other_channels_are_taken_together() -> None:
    noise = TapNoise()
    noise.add(np.ones(3, np.float32), np.zeros(3, np.float32))
    noise.add(np.ones(5, np.float32), np.ones(5, np.float32))
    assert noise.level == pytest.approx(3 / 8)


def test_sums_along_an_axis_are_those_of_each_place() -> None:
    rng = np.random.default_rng(3)
    reference, got = (rng.standard_normal((3, 5, 7)).astype(np.float32) for _ in range(2))
    found = energies(reference, got, 1)
    np.testing.assert_allclose(found[0], (reference.astype(np.float64) ** 2).sum((0, 2)))
    np.testing.assert_allclose(found.sum(1), energies(reference, got))


def test_a_float_layer_that_cannot_run_on_what_it_is_given_says_nothing(tmp_path: Path) -> None:
    one = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    replay = Replay(one.graph, ["h0"], ["h1"])
    assert replayed(replay, {}, {"h0": np.ones((3, 5), np.float32)}) == {}
    assert list(replayed(replay, {}, {"h0": np.ones((3, 8), np.float32)})) == ["h1"]


def test_tensors_of_another_shape_are_not_compared(tmp_path: Path) -> None:
    first, second = (
        models.Model(
            to_graph(
                model(
                    ("MatMul", "x w", "a"),
                    ("Relu", "a", "b"),
                    ("ReduceMax", "b", "y"),
                    inputs={"x": (2, 4)},
                    outputs=("y",),
                    weights={"w": weight},
                )
            ),
            {},
            None,
            10,
        )
        for weight in (W, W[:, :3])
    )
    found = measure(first, second, [{"x": np.ones((2, 4), np.float32)}], find_taps(first.graph, second.graph, 96))
    assert [tap.name for tap in found.taps] == ["y"]


@pytest.mark.parametrize(
    ("factor", "offset", "strange"),
    [(1.0, 0.1, False), (1.6, 0.0, False), (1.8, 0.0, True), (8.0, 0.0, True), (0.0, 0.0, True), (1.0, np.inf, True)],
)
def test_noise_of_half_the_power_is_something_else(factor: float, offset: float, strange: bool) -> None:
    noise = TapNoise()
    reference = np.array([[1.0, -1.0], [2.0, 0.5]])
    noise.add(reference, reference * factor + offset)
    assert noise.strange is strange


def test_noise_where_there_is_no_signal_is_no_sign_of_anything() -> None:
    noise = TapNoise()
    noise.add(np.zeros((2, 2)), np.full((2, 2), 1e-6))
    assert not noise.strange
