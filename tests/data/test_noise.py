"""RandomData in the sizes that a model takes: usual ones, and where these contradict each other, others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.data.noise import RandomData, noise_for
from qcompiler.data.source import open_source, suited
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.runtime.stream import OpenModel
from tests.data.samples import F32, I64, refused
from tests.kit.rewrite import Spec, model, to_graph

JOINED = (("Concat", "a b", "c", {"axis": 1}), ("Add", "c m", "y"))


def graph(*nodes: Spec, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), **weights: Any) -> gs.Graph:
    return to_graph(model(*nodes, inputs=inputs, outputs=outputs, weights=weights))


def shapes(noise: RandomData, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in next(noise.feeds(inputs, 1)).items()}


def test_usual_sizes_and_sums_by_name() -> None:
    inputs: Inputs = {
        "x": (F32, ("batch", 3, "h", "w")),
        "ids": (I64, ("batch", "new")),
        "past": (F32, (None, 2, "old", 8)),
        "mask": (I64, ("batch", "old + new")),
        "square": (F32, ("n", "n")),
    }
    found = shapes(RandomData(), inputs)
    assert found == {"x": (1, 3, 64, 64), "ids": (1, 16), "past": (1, 2, 64, 8), "mask": (1, 80), "square": (16, 16)}
    assert shapes(RandomData({"new": 5}), inputs)["mask"] == (1, 69)


@pytest.mark.parametrize(
    ("g", "sizes"),
    [
        (graph(*JOINED, inputs={"a": ("n", "k", 4), "b": ("n", "l", 4), "m": ("n", "t", 4)}), {"t": 32}),
        (graph(("Add", "a b", "y"), inputs={"a": ("n", "k", 4), "b": ("n", "l", 4)}), {}),
        (graph(("Add", "a b", "y"), inputs={"a": ("n", "k"), "b": ("n", 2, 3, "l")}), {"k": 64}),
        (
            graph(
                ("Conv", "u w", "y"),
                ("Reshape", "x s", "u"),
                inputs={"x": ("t",)},
                s=np.array([1, 1, -1]),
                w=np.ones((4, 1, 25), np.float32),
            ),
            {"t": 64},
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_changed(g: gs.Graph, sizes: dict[str, int]) -> None:
    noise = noise_for(g)
    assert noise == RandomData(sizes)
    OpenModel(g, outputs=["y"], quick=True).run(next(noise.feeds(inputs_of(g), 1)))


def test_where_nothing_fits_the_usual_sizes_are_left_for_the_run_to_refuse() -> None:
    g = graph(("MatMul", "a w", "y"), inputs={"a": ("n", "k")}, w=np.ones((7, 3), np.float32))
    assert noise_for(g) == RandomData()


def test_random_data_is_made_for_the_graph_and_other_data_is_left_alone() -> None:
    g = graph(*JOINED, inputs={"a": ("n", "k", 4), "b": ("n", "l", 4), "m": ("n", "t", 4)})
    source = open_source(suited("random", g), inputs_of(g))
    assert (source.random, source.name, next(iter(source))["m"].shape) == (True, "random", (1, 32, 4))
    assert suited("folder", g) == "folder"
    assert suited(None, g) is None


def test_sequences_cannot_be_made() -> None:
    assert "'random' cannot make" in refused("random", {"s": (None, None)})
