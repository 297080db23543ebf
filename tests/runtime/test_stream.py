"""The door to ONNX Runtime: what is tapped comes in parts that fit the budget, and every part has the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.data.source import open_source
from qcompiler.errors import DataError, ModelError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import shapes
from qcompiler.runtime.finite import first_not_finite
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.runtime.stream import OpenModel, Stream, fill, run_once, stream
from qcompiler.statistics.histogram import Histograms
from qcompiler.statistics.observe import observe
from qcompiler.statistics.points import Points
from qcompiler.statistics.residual import joins, measure, residuals, tensors_of
from qcompiler.statistics.rows import record_rows
from qcompiler.support.each import Each, in_turn
from tests.kit import decoder
from tests.kit.memory import crossing
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(3)
KERNELS = [RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) * 0.1 for _ in range(5)]
TENSORS = ["x", *(f"a{at}" for at in range(5)), "s"]
MAP = 4 * 16 * 20 * 20  # bytes of a map of one feed
INPUTS: Inputs = {"x": (np.dtype(np.float32), ("n", 16, "h", "w"))}


def network(*, pool: bool = False) -> models.Model:
    """Five convolutions with ReLU, a residual Add around the last two; at the end an average on request."""
    nodes: list[Any] = []
    weights = {}
    before = "x"
    for at, kernel in enumerate(KERNELS):
        weights[f"w{at}"] = kernel
        nodes.append(("Conv", f"{before} w{at}", f"c{at}", {"pads": [1] * 4}))
        nodes.append(("Relu", f"c{at}", f"a{at}"))
        before = f"a{at}"
    nodes.append(("Add", "a4 a2", "s"))
    nodes.append(("GlobalAveragePool", "s", "y") if pool else ("Abs", "s", "y"))
    return _model(model(*nodes, inputs={"x": ("n", 16, "h", "w")}, outputs=("y",), weights=weights))


def _model(proto: onnx.ModelProto) -> models.Model:
    graph = to_graph(proto)
    shapes.infer(graph)
    return models.Model(graph, {}, None, 8)


def feeds(count: int = 3, size: int = 20) -> list[Feeds]:
    return [{"x": RNG.standard_normal((1, 16, size, size)).astype(np.float32)} for _ in range(count)]


def values(opened: Stream, data: list[Feeds]) -> dict[tuple[int, str], bytes]:
    found: dict[tuple[int, str], bytes] = {}
    for index, feed in enumerate(data):
        for part in opened.parts(index, feed):
            assert not part.values.keys() & {name for at, name in found if at == index}
            found.update({(index, name): value.tobytes() for name, value in part.values.items()})
    return found


def test_what_fits_the_budget_is_one_part() -> None:
    (data,) = feeds(1)
    for part in stream(network(), TENSORS, [data]):
        assert (part.index, part.last, set(part.values)) == (0, True, set(TENSORS))
        assert part.values["x"] is data["x"]


@pytest.mark.parametrize("budget", [1, 2 * MAP, 3 * MAP])
@pytest.mark.parametrize("quick", [False, True])
def test_parts_have_the_bits_of_the_whole_and_fit_the_budget(budget: int, quick: bool) -> None:
    data = feeds()
    whole = values(Stream(network(), TENSORS, quick=quick), data)
    assert values(Stream(network(), TENSORS, quick=quick, budget=budget), data) == whole
    parts = list(_sizes(network(), data[0], budget))
    assert len(parts) == {1: 6, 2 * MAP: 3, 3 * MAP: 2}[budget]
    assert max(parts) <= max(budget, MAP)


def _sizes(network_: models.Model, feed: Feeds, budget: int) -> list[int]:
    parts = stream(network_, [name for name in TENSORS if name != "x"], [feed], budget=budget)
    return [sum(value.nbytes for value in part.values.values()) for part in parts]


def test_an_average_has_the_bits_of_the_whole_too() -> None:
    data, tensors = feeds(), [*TENSORS, "y"]
    whole = values(Stream(network(pool=True), tensors), data)
    assert values(Stream(network(pool=True), tensors, budget=1), data) == whole


def test_values_are_let_go_when_the_next_part_is_asked_for() -> None:
    parts = list(stream(network(), TENSORS, feeds(2), budget=1))
    assert [part.index for part in parts] == [0] * 6 + [1] * 6
    assert [part.last for part in parts] == ([False] * 5 + [True]) * 2
    assert all(part.values == {} for part in parts)


def test_a_feed_that_is_much_larger_is_cut_into_more_parts() -> None:
    opened = Stream(network(), TENSORS, budget=6 * MAP)
    small, large = feeds(1)[0], feeds(1, size=60)[0]
    assert len(list(opened.parts(0, small))) == 1
    assert len(list(opened.parts(1, large))) == 6
    assert len(list(opened.parts(2, small))) == 6  # it stays cut


def test_a_decoder_is_cut_between_its_layers_with_the_same_bits() -> None:
    proto = decoder.decoder(cache=False)
    network_ = _model(proto)
    tensors = [node.inputs[0].name for node in network_.graph.nodes if node.op == "MatMul"]
    data: list[Feeds] = [{"input_ids": decoder.tokens(2, 9, seed)} for seed in range(2)]
    whole, cut = Stream(network_, tensors), Stream(network_, tensors, budget=1)
    assert values(cut, data) == values(whole, data)
    assert len(list(cut.parts(0, data[0]))) > decoder.LAYERS


def test_nothing_is_run_for_inputs_alone() -> None:
    (data,) = feeds(1)
    (part,) = stream(network(), ["x"], [data])
    assert part.values == {"x": data["x"]}
    assert OpenModel(network(), outputs=["x"]).run(data) == {"x": data["x"]}
    assert OpenModel(network(), outputs=[]).run({}) == {}


def test_an_open_model_returns_inner_tensors_and_inputs_beside_each_other() -> None:
    (data,) = feeds(1)
    opened = OpenModel(network(), outputs=["a1", "x", "y"])
    found = opened.run(data)
    assert opened.outputs == ["a1", "x", "y"]
    assert opened.inputs == INPUTS
    assert found["x"] is data["x"]
    np.testing.assert_allclose(found["a1"], run_once(network(), data, outputs=["a1"])["a1"], atol=1e-5)
    assert list(run_once(network(), data)) == ["y"]


def test_a_feed_that_does_not_fit_is_refused_in_parts_too() -> None:
    wrong = {"x": np.zeros((1, 5, 20, 20), np.float32)}
    for budget in (1, 1 << 30):
        with pytest.raises(DataError, match=r"float32\[1, 5, 20, 20\]"):
            list(stream(network(), TENSORS, [wrong], budget=budget))


def test_all_accumulators_see_all_parts_and_progress_counts_feeds() -> None:
    data, steps = feeds(), list[int]()
    one, other = Histograms(["a1", "s"]), Histograms(["x"])
    fill(network(), [one, other], data, advance=steps.append, budget=1)
    expected = Histograms(["a1", "s", "x"])
    fill(network(), [expected], data)
    assert {**one.found, **other.found} == expected.found
    assert steps == [1, 1, 1]


@pytest.mark.parametrize("each", [in_turn, crossing])
def test_everything_that_points_want_is_the_same_in_parts(each: Each) -> None:
    points = Points.of(
        histograms=["x", "a1"], outliers={"a2": 1, "a3": 1}, rows={"a1": 1}, hessians={"a4": 20}, ranges=["a0", "s"]
    )

    def seen(budget: int, each: Each = in_turn) -> Any:
        source = open_source(data, INPUTS)
        return observe(network_, points, source, expected=len(data), each=each, budget=budget)

    data, network_ = feeds(6), network()
    whole, parts = seen(1 << 30), seen(1, each)
    assert list(parts.histograms) == ["x", "a1", "a2", "a3"]
    assert (parts.histograms, parts.outliers, parts.ranges) == (whole.histograms, whole.outliers, whole.ranges)
    counted = Histograms(["s"])
    fill(network_, [counted], data)
    assert parts.ranges["s"].high == counted.found["s"].maximum
    np.testing.assert_array_equal(parts.rows["a1"].values, whole.rows["a1"].values)
    np.testing.assert_array_equal(parts.rows["a1"].values, record_rows(network_, {"a1": 1}, data)["a1"].values)
    np.testing.assert_allclose(parts.hessians["a4"], whole.hessians["a4"], rtol=1e-12)


def test_ranges_at_residual_adds_are_the_same_in_parts() -> None:
    data, network_ = feeds(), network()
    found = joins(network_.graph)
    seen = Histograms(tensors_of(found))
    fill(network_, [seen], data, budget=1)
    assert [one.total for one in found] == ["s"]
    assert residuals(found, seen.found) == measure(network_.graph, data)


def test_what_is_not_finite_is_found_in_parts_too() -> None:
    (data,) = feeds(1)
    data["x"][0, 0, 3, 3] = np.nan
    node = first_not_finite(network().graph, data)
    assert node is not None
    assert node.name == "C0"
    source = [{"x": np.full((1, 16, 20, 20), 3e38, np.float32)}]
    for budget in (1, 1 << 30):
        with pytest.raises(ModelError, match=r"output '.*' .* on sample 0; node 'C0' \(Conv\) is the first"):
            observe(network(), Points.of(histograms=TENSORS), open_source(source, INPUTS), budget=budget)


def test_memory_that_parts_shared_goes_back_to_the_system() -> None:
    big = feeds(1, size=400)
    for part in stream(network(), TENSORS, big, budget=1):
        assert len(part.values) <= 2
    before = _resident_mb()
    return_freed_memory()
    assert _resident_mb() < before - 20


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
