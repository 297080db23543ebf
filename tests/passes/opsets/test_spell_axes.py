"""Short lists of axes, alone and between quantized convolutions, where ONNX Runtime's optimiser breaks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.opsets.spell_axes import SpellAxes
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, check, check_skipped, check_untouched, model, random_feeds, to_graph

IMAGE = {"x": ("n", 4, 8, 6)}
I64 = np.int64


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


SHORT: list[Any] = [
    pytest.param(("Resize", "x _ s", "m", {"axes": [2, 3]}), {"s": floats(2, 2)}, id="scales"),
    pytest.param(
        ("Resize", "x _ s", "m", {"axes": [-1, -2], "mode": "linear"}), {"s": floats(2, 3)}, id="in any order"
    ),
    pytest.param(("Resize", "x _ s", "m", {"axes": [3, 2, 1, 0]}), {"s": floats(2, 2, 1, 1)}, id="all of them"),
    pytest.param(("Resize", "x _ _ s", "m", {"axes": [2, 3]}), {"s": np.array([16, 12])}, id="sizes"),
    pytest.param(("Resize", "x _ _ s", "m", {"axes": [3]}), {"s": np.array([3])}, id="one size"),
    pytest.param(("Pad", "x p _ a", "m"), {"p": np.array([1, 2, 1, 0]), "a": np.array([2, 3])}, id="widths"),
    pytest.param(
        ("Pad", "x p v a", "m"), {"p": np.array([1, 1]), "v": np.float32(2), "a": np.array([-1])}, id="a value"
    ),
    pytest.param(("Pad", "x p _ a", "m", {"mode": "edge"}), {"p": np.array([1, 2]), "a": np.array([2])}, id="edges"),
    pytest.param(("CenterCropPad", "x s", "m", {"axes": [2, 3]}), {"s": np.array([6, 6])}, id="a crop"),
]


def between(spec: Spec, weights: dict[str, Any]) -> Any:
    """The node between two quantized convolutions."""
    rng = np.random.default_rng(0)
    held = {
        "s8": np.float32(0.05),
        "z8": np.uint8(128),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        **{name: rng.integers(-60, 60, (4, 4, 3, 3)).astype(np.int8) for name in ("w1", "w2")},
        **weights,
    }
    nodes: list[Spec] = [("DequantizeLinear", f"{name} ws wz", f"{name}d") for name in ("w1", "w2")]

    def pair(read: str, made: str) -> list[Spec]:
        return [("QuantizeLinear", f"{read} s8 z8", f"{made}q"), ("DequantizeLinear", f"{made}q s8 z8", made)]

    op, reads, made, *attrs = spec
    pads = {"pads": [1, 1, 1, 1]}
    nodes += [*pair("x", "xd"), ("Conv", "xd w1d", "c", pads), *pair("c", "cd")]
    nodes += [(op, reads.replace("x", "cd", 1), made, *attrs), *pair("m", "md")]
    nodes += [("Conv", "md w2d", "e", pads), *pair("e", "y")]
    return model(*nodes, inputs=IMAGE, weights=held, opset=19)


@pytest.mark.parametrize(("spec", "weights"), SHORT)
def test_all_axes_are_named_and_nothing_else_changes(spec: Spec, weights: dict[str, Any]) -> None:
    graph, _ = check(SpellAxes(), model(spec, inputs=IMAGE, weights=weights, opset=19, outputs=["m"]), tolerance=0)
    assert "axes" not in graph.nodes[-1].attrs


@pytest.mark.parametrize(("spec", "weights"), SHORT)
def test_the_optimiser_keeps_what_it_makes(spec: Spec, weights: dict[str, Any]) -> None:
    graph = to_graph(between(spec, weights))
    feeds = random_feeds(graph)
    wanted = Session(graph, optimize=False).run(feeds)["y"]
    SpellAxes()(graph)
    found = Session(graph).run(feeds)["y"]
    assert np.abs(found - wanted).max() <= 0.11  # two steps of the last quantizer: it rounds halves in another way


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (("Resize", "x _ s", "y", {"axes": [2, 3]}), np.float32),
        (("Resize", "x _ _ s", "y", {"axes": [3, 2]}), I64),
        (("Pad", "x s _ a", "y"), I64),
    ],
)
def test_computed_values_find_their_places(spec: Spec, dtype: Any) -> None:
    given = np.array([1, 2, 0, 1] if spec[0] == "Pad" else [3, 2], dtype)
    weights = {"a": np.array([3, 1])} if spec[0] == "Pad" else {}
    proto = model(spec, inputs={**IMAGE, "s": (dtype, given.shape)}, weights=weights, opset=19)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 8, 6)).astype(np.float32), "s": given}
    check(SpellAxes(), proto, feeds, tolerance=0)


def test_what_cannot_be_spelled_out_is_told() -> None:
    attrs = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}
    proto = model(("Resize", "x _ _ s", "y", attrs), inputs=IMAGE, weights={"s": np.array([9, 9])}, opset=18)
    check_skipped(SpellAxes(), proto, "keeps the aspect ratio")
    proto = model(("Pad", "x p _ a", "y"), inputs={**IMAGE, "p": (I64, (2,)), "a": (I64, (1,))}, opset=18)
    check_skipped(SpellAxes(), proto, "its axes are not constant")


def test_all_axes_stay() -> None:
    check_untouched(
        SpellAxes(), model(("Resize", "x _ s", "y"), inputs=IMAGE, weights={"s": floats(1, 1, 2, 2)}, opset=18)
    )
