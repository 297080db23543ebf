"""What crosses a border as half: inputs and outputs of the model that fit, values that nested graphs hand on."""

from __future__ import annotations

import numpy as np

from qcompiler.passes.base import Decided, Kept, Skipped
from qcompiler.passes.high_precision.high_precision import HighPrecision
from tests.kit.rewrite import model, to_graph
from tests.kit.typed import F32, bordered, interface, weight

F16 = np.dtype(np.float16)


def test_an_input_that_does_not_fit_stays_and_says_why() -> None:
    proto = model(("Mul", "x small", "m"), ("MatMul", "m w", "y"),
                  weights={"small": np.float32(1e-3), "w": weight(4, 4)})  # fmt: skip
    graph, report = bordered(proto, {"x": np.full((2, 4), 2e4, np.float32)})
    assert interface(graph) == [("x", F32), ("y", F16)]
    assert "2e+04, times a margin of 8" in report.kept["x"]


def test_an_output_that_overflows_stays_fp32() -> None:
    proto = model(("MatMul", "x w", "m"), ("Exp", "m", "y"), weights={"w": np.eye(4, dtype=np.float32)})
    graph, report = bordered(proto, {"x": np.full((2, 4), 11, np.float32)})
    assert interface(graph) == [("x", F16), ("y", F32)]
    assert set(report.kept) == {"y"}


def test_inputs_that_vanish_count_far_or_were_never_seen_stay_fp32() -> None:
    tiny = model(("Mul", "x k", "y"), weights={"k": np.float32(1e6)})
    assert "smallest normal" in bordered(tiny, {"x": np.full((2, 4), 1e-6, np.float32)})[1].kept["x"]
    ids = model(("Cast", "x", "i", {"to": 7}), ("Gather", "w i", "y"), inputs={"x": (3,)}, weights={"w": weight(4000)})
    assert "counts to" in bordered(ids, {"x": np.array([1, 2, 3001], np.float32)})[1].kept["x"]
    graph = to_graph(model(("Relu", "x", "y")))
    blind = HighPrecision(io_types="high-precision")(graph)
    assert "observed" in blind.kept["x"]
    assert [type(note) for note in blind.notes] == [Decided, Skipped, Kept, Kept]


def test_an_input_of_a_recurrent_layer_stays_fp32() -> None:
    proto = model(
        ("Transpose", "x", "t", {"perm": [1, 0, 2]}),
        ("GRU", "t w r _ _ h", "g", {"hidden_size": 8}),
        ("Squeeze", "g one", "y"),
        inputs={"x": (1, 5, 8), "h": (1, 1, 8)},
        weights={"w": weight(1, 24, 8), "r": weight(1, 24, 8), "one": np.array([1])},
    )
    graph, report = bordered(proto)
    assert interface(graph) == [("x", F32), ("h", F32), ("y", F16)]
    assert "recurrent layer" in report.kept["h"]
