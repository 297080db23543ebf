"""A graph with switches that is run part by part: the same results, and what lies in front is run once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import DataError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.planning.placement import candidates
from qcompiler.planning.simulation import in_parts, simulator
from qcompiler.planning.simulation.bias import Shifts
from qcompiler.planning.simulation.in_parts import InParts
from qcompiler.planning.simulation.simulator import Simulator, Use
from qcompiler.runtime.stream import OpenModel
from qcompiler.target import DType, parse_target
from tests.kit.rewrite import model

RNG = np.random.default_rng(8)
LAYERS = 13
Uses = dict[str, Use]


def convnet() -> onnx.ModelProto:
    """Convolutions, every third one beside a shortcut, an average at the end; weights of one behind a Transpose."""
    nodes: list[Any] = [("Transpose", "wt", "w5", {"perm": [1, 0, 2, 3]})]
    weights: dict[str, Any] = {"wt": _weight(8, 8, 3, 3)}
    at = "x"
    for layer in range(LAYERS):
        read = at
        nodes.append(("Conv", f"{at} w{layer} b{layer}", f"c{layer}", {"pads": [1] * 4}))
        nodes.append(("Relu", f"c{layer}", f"r{layer}"))
        weights |= (
            {f"b{layer}": _weight(8)} if layer == 5 else {f"w{layer}": _weight(8, 8, 3, 3), f"b{layer}": _weight(8)}
        )
        at = f"r{layer}"
        if layer % 3 == 2:
            nodes.append(("Add", f"{at} {read}", f"s{layer}"))
            at = f"s{layer}"
    nodes.append(("GlobalAveragePool", at, "y"))
    return model(*nodes, inputs={"x": (1, 8, 12, 12)}, weights=weights, opset=21)


def mlp() -> onnx.ModelProto:
    """Products, each with a Relu behind it, and one that reads what the first has made."""
    nodes: list[Any] = []
    weights: dict[str, Any] = {}
    for layer in range(LAYERS):
        at = f"r{layer - 1}" if layer else "x"
        nodes.append(("MatMul", f"{at} w{layer}", f"m{layer}"))
        nodes.append(("Relu", f"m{layer}", f"r{layer}"))
        weights[f"w{layer}"] = _weight(24, 24)
    nodes += [("MatMul", "r0 far", "late"), ("Add", f"late r{LAYERS - 1}", "y")]
    weights["far"] = _weight(24, 24)
    return model(*nodes, inputs={"x": (6, 24)}, weights=weights, opset=21)


def _weight(*shape: int) -> np.ndarray[Any, Any]:
    fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return np.asarray(RNG.standard_normal(shape) * np.sqrt(2.0 / fan), np.float32)


class Twins:
    """A simulator in parts, and one that is run as a whole."""

    def __init__(
        self,
        folder: Path,
        proto: onnx.ModelProto,
        patch: pytest.MonkeyPatch,
        dtypes: tuple[DType, ...] = (DType.INT8,),
    ) -> None:
        onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "m.onnx")
        self.model = models.load(folder / "m.onnx")
        found, _ = candidates.find_candidates(self.model.graph, parse_target("tensorrt-rtx"))
        self.groups = candidates.by_activation(found)
        shape = tuple(int(dim) for dim in self.model.graph.inputs[0].shape)
        self.feeds = [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(3)]
        ranges = {name: [3.0] for name in self.groups}
        shifts = Shifts(self.model, self.groups, ranges, self.feeds, fp8=ranges)
        self.parts = Simulator(self.model, self.groups, shifts, dtypes=dtypes)
        with patch.context() as alone:
            alone.setattr(in_parts, "_can_be_cut", lambda *given: False)
            self.whole = Simulator(self.model, self.groups, shifts, dtypes=dtypes)

    def some(self, *, dtypes: tuple[DType, ...] = (DType.INT8,)) -> list[Uses]:
        """Nothing, everything, each group alone, and some at random."""
        names = list(self.groups)
        chosen = [[], names, *([name] for name in names)]
        chosen += [[name for name in names if RNG.random() < share] for share in (0.2, 0.5, 0.8, 0.8)]
        return [{name: Use(dtypes[RNG.integers(len(dtypes))], 3.0) for name in one} for one in chosen]


Make = Callable[[], onnx.ModelProto]


@pytest.mark.parametrize("dtypes", [(DType.INT8,), (DType.FP8,), (DType.INT8, DType.FP8)], ids=["int8", "fp8", "both"])
@pytest.mark.parametrize("proto", [convnet, mlp])
def test_parts_give_what_the_whole_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: Make, dtypes: tuple[DType, ...]
) -> None:
    twins = Twins(tmp_path, proto(), monkeypatch, dtypes)
    for feed in twins.feeds:
        for uses in twins.some(dtypes=dtypes):
            found, expected = twins.parts.run(feed, uses)["y"], twins.whole.run(feed, uses)["y"]
            # Sums in another order now and then round to the other side, which is one step of one value
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
            assert np.median(np.abs(found - expected)) < 1e-3 * np.abs(expected).max()


def test_products_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, mlp(), monkeypatch)
    for uses in twins.some():
        found, expected = twins.parts.run(twins.feeds[0], uses)["y"], twins.whole.run(twins.feeds[0], uses)["y"]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("proto", [convnet, mlp])
def test_the_order_of_runs_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: Make) -> None:
    twins = Twins(tmp_path, proto(), monkeypatch)
    plans = twins.some()
    first = [twins.parts.run(twins.feeds[0], uses)["y"] for uses in plans]
    again = [twins.parts.run(dict(twins.feeds[0]), uses)["y"] for uses in reversed(plans)]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The feeds of all sessions that are run from here on."""
    ran: list[Mapping[str, Any]] = []
    plain = OpenModel.run

    def run(self: OpenModel, feeds: Mapping[str, Any]) -> Feeds:
        ran.append(feeds)
        return plain(self, feeds)

    monkeypatch.setattr(OpenModel, "run", run)
    return ran


@pytest.mark.parametrize("proto", [convnet, mlp])
def test_what_lies_in_front_is_run_once_for_each_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: Make
) -> None:
    twins = Twins(tmp_path, proto(), monkeypatch)
    name = list(twins.groups)[-1]
    last = {name: Use(DType.INT8, 3.0)}
    ran = _counted(monkeypatch)
    twins.parts.run(twins.feeds[0], last)
    first = len(ran)
    twins.parts.run(twins.feeds[0], {name: Use(DType.INT8, 2.0)})
    again = len(ran) - first
    twins.parts.run(twins.feeds[1], last)
    assert first > 2
    assert again == 1
    assert len(ran) - first - again == first


def test_float_values_are_kept_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parts, "KEPT", 0)
    twins = Twins(tmp_path, mlp(), monkeypatch)
    last = {f"r{LAYERS - 2}": Use(DType.INT8, 3.0)}
    ran = _counted(monkeypatch)
    found = twins.parts.run(twins.feeds[0], last)["y"]
    first = len(ran)
    np.testing.assert_array_equal(twins.parts.run(twins.feeds[0], last)["y"], found)
    assert len(ran) == 2 * first


def test_what_comes_once_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, mlp(), monkeypatch)
    last = {f"r{LAYERS - 2}": Use(DType.INT8, 3.0)}
    ran = _counted(monkeypatch)
    twins.parts.infer(twins.feeds[0], last)
    first = len(ran)
    twins.parts.infer(twins.feeds[0], last)
    assert len(ran) == 2 * first


def test_large_weights_are_not_held_as_floats_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, mlp(), monkeypatch)
    names = list(twins.groups)
    everything = {name: Use(DType.INT8, 3.0) for name in names}
    expected = twins.parts.run(twins.feeds[0], everything)["y"]
    monkeypatch.setattr(simulator, "BUDGET", 0)
    made: list[Any] = []
    monkeypatch.setattr(simulator._Quantized, "replaced", lambda *given: made.append(given))
    small = Twins(tmp_path, onnx.load(tmp_path / "m.onnx"), monkeypatch)
    np.testing.assert_array_equal(small.parts.run(twins.feeds[0], everything)["y"], expected)
    assert not made


def test_a_feed_that_does_not_fit_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, mlp(), monkeypatch)
    feed = {"x": np.zeros((6, 25), np.float32)}
    with pytest.raises(DataError) as caught:
        twins.parts.run(feed, {})
    assert caught.value.fed is feed


def _drawing() -> onnx.ModelProto:
    """The products with noise on top."""
    proto = mlp()
    proto.graph.node[-1].output[0] = "calm"
    proto.graph.node.append(onnx.helper.make_node("RandomNormalLike", ["calm"], ["noise"], name="noise"))
    proto.graph.node.append(onnx.helper.make_node("Add", ["calm", "noise"], ["y"], name="noisy"))
    return proto


def test_a_model_that_draws_is_run_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(tmp_path, _drawing(), monkeypatch)
    for uses in twins.some()[:3]:
        found, expected = twins.parts.run(twins.feeds[0], uses)["y"], twins.whole.run(twins.feeds[0], uses)["y"]
        np.testing.assert_array_equal(found, expected)


def test_an_output_that_is_an_input_comes_back_as_it_was_fed() -> None:
    proto = onnx.shape_inference.infer_shapes(mlp())
    layers = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
    borders = [f"r{at}" for at in range(LAYERS)]
    opened = InParts(proto, proto, {}, layers=layers, borders=borders, outputs=["y", "x"])
    x = RNG.standard_normal((6, 24)).astype(np.float32)
    found = opened.run({"x": x}, {}, [], [], keep=True)
    assert found["x"] is x
    assert found["y"].shape == (6, 24)
