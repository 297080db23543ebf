from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir import model as models
from qcompiler.passes.base import Changed, Pass, Report
from qcompiler.passes.channels.equalize_channels import EqualizeChannels
from qcompiler.passes.pipelines import clean_up
from qcompiler.runtime import shapes
from qcompiler.target import Target
from qcompiler.verification.equivalence import Equivalence
from tests.kit import models as real
from tests.kit.absorbing import IMAGE, PADS, TOKENS, build, normal
from tests.kit.rewrite import check, check_skipped, check_untouched

SPREAD = np.exp(np.linspace(-3, 3, 6)).astype(np.float32)
# Output channels that differ by a factor of 400
UNEVEN = normal(6, 4, 3, 3) * SPREAD[:, None, None, None]


def ranges(graph: gs.Graph, node: str, axis: int) -> Any:
    """The largest |w| of a node's weight along an axis."""
    weight = np.abs(next(one for one in graph.nodes if one.name == node).inputs[1].values)
    return weight.max(axis=tuple(k for k in range(weight.ndim) if k != axis))


@pytest.mark.parametrize(
    "between",
    [
        ("Relu", "a", "t"),
        ("LeakyRelu", "a", "t"),
        ("PRelu", "a slope", "t"),
        ("Identity", "a", "t"),
        ("MaxPool", "a", "t", {"kernel_shape": [2, 2]}),
        ("Clip", "a zero", "t"),
    ],
    ids=lambda spec: spec[0],
)
def test_both_sides_get_one_range(between: Any) -> None:
    weights = {"v": UNEVEN, "b": (6,), "w": (5, 6, 1, 1), "slope": (6, 1, 1), "zero": np.float32(0)}
    proto = build([("Conv", "x v b", "a", PADS), between, ("Conv", "t w", "y")], weights, IMAGE)
    graph, report = check(EqualizeChannels(), proto, tolerance=1e-5)
    np.testing.assert_allclose(ranges(graph, "A", 0), ranges(graph, "Y", 1), rtol=1e-5)
    assert [(type(note), note.node) for note in report.notes] == [(Changed, "t")]


def test_the_factors_are_those_of_the_paper() -> None:
    proto = build([("Conv", "x v", "t"), ("Conv", "t w", "y")], {"v": UNEVEN, "w": (5, 6, 1, 1)}, IMAGE)
    graph, _ = check(EqualizeChannels(), proto, tolerance=1e-5)
    r1, r2 = np.abs(UNEVEN).max(axis=(1, 2, 3)), np.abs(normal(5, 6, 1, 1)).max(axis=(0, 2, 3))
    np.testing.assert_allclose(ranges(graph, "T", 0), np.sqrt(r1 * r2), rtol=1e-5)


def test_a_separable_stack_settles() -> None:
    """Each layer is the second of one pair and the first of the next."""
    proto = build(
        [
            ("Conv", "x v", "t1"),
            ("Relu", "t1", "r1"),
            ("Conv", "r1 d", "t2", {"group": 6, **PADS}),
            ("Relu", "t2", "r2"),
            ("Conv", "r2 p", "t3"),
            ("GlobalAveragePool", "t3", "g"),
            ("Flatten", "g", "f"),
            ("Gemm", "f w", "y", {"transB": 1}),
        ],
        {"v": UNEVEN, "d": normal(6, 1, 3, 3) * SPREAD[::-1, None, None, None], "p": (8, 6, 1, 1), "w": (5, 8)},
        IMAGE,
    )
    graph, report = check(EqualizeChannels(), proto, tolerance=1e-5)
    assert [note.node for note in report.notes] == ["r1", "r2", "f"]
    for first, second, axis in (("T1", "T2", 0), ("T2", "T3", 1), ("T3", "Y", 1)):
        np.testing.assert_allclose(ranges(graph, first, 0), ranges(graph, second, axis), rtol=1e-2)


def test_a_dead_channel_is_left_alone() -> None:
    dead = UNEVEN.copy()
    dead[2] = 0
    proto = build([("Conv", "x v b", "t"), ("Conv", "t w", "y")], {"v": dead, "b": (6,), "w": (5, 6, 1, 1)}, IMAGE)
    graph, _ = check(EqualizeChannels(), proto, tolerance=1e-5)
    assert ranges(graph, "Y", 1)[2] == np.abs(normal(5, 6, 1, 1))[:, 2].max()


def test_a_depthwise_layer_alone_needs_nothing_where_ranges_agree() -> None:
    proto = build([("Conv", "x v", "t"), ("Conv", "t v", "y")], {"v": np.ones((4, 4, 1, 1), np.float32)}, IMAGE)
    check_untouched(EqualizeChannels(), proto)


def test_transformers_are_not_its_business() -> None:
    nodes = [("MatMul", "x v", "a"), ("Relu", "a", "t"), ("MatMul", "t w", "y")]
    check_untouched(EqualizeChannels(), build(nodes, {"v": (8, 6), "w": (6, 5)}, TOKENS))


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ([("Clip", "a zero six", "t")], "'T' (Clip) has one bound for all channels"),
        ([("Sigmoid", "a", "t")], "'T' (Sigmoid) does not pass a factor on"),
        (
            [("HardSigmoid", "a", "h"), ("Mul", "a h", "p"), ("Mul", "p six", "t")],
            "'T' (Mul) would take the factors, not the weights of a layer",
        ),
        ([("Relu", "a", "t"), ("Exp", "t", "z")], "'t' is also read by 'Z' (Exp)"),
    ],
    ids=["ReLU6", "sigmoid", "HardSwish", "other readers"],
)
def test_refused(between: Any, why: str) -> None:
    weights = {"v": UNEVEN, "w": (5, 6, 1, 1), "zero": np.float32(0), "six": np.float32(6)}
    outputs = ["y", "z"] if between[-1][2] == "z" else ["y"]
    proto = build([("Conv", "x v", "a"), *between, ("Conv", "t w", "y")], weights, IMAGE, outputs)
    check_skipped(EqualizeChannels(), proto, why)


def test_a_matmul_before_a_conv_is_no_pair() -> None:
    nodes = [("MatMul", "x v", "a"), ("Transpose", "a", "t", {"perm": [0, 2, 1]}), ("Conv", "t w", "y")]
    proto = build(nodes, {"v": (8, 6), "w": (5, 6, 1)}, TOKENS)
    check_skipped(EqualizeChannels(), proto, "no convolution makes it")


def test_factors_beyond_half_precision_are_refused() -> None:
    """A kernel close to the largest half would have to grow."""
    huge, tiny = np.full((4, 4, 1, 1), 60000, np.float16), np.full((4, 4, 1, 1), 1, np.float16)
    nodes = [("Conv", "x v b", "t"), ("Conv", "t w", "y")]
    weights = {"v": tiny, "b": np.full(4, 60000, np.float16), "w": huge}
    proto = build(nodes, weights, {"x": (np.float16, (1, 4, 3, 3))})
    check_skipped(EqualizeChannels(), proto, "'b' of 'T' would leave the range of float16")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["full", "grouped", "depthwise"]), min_size=2, max_size=5), st.integers(0, 99))
def test_generated_stacks_stay_exact(kinds: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    weights: dict[str, Any] = {}
    last = "x"
    for k, kind in enumerate(kinds):
        group = {"full": 1, "grouped": 2, "depthwise": 4}[kind]
        spread = np.exp(rng.normal(size=(4, 1, 1, 1)) * 2)
        weights[f"w{k}"] = (rng.normal(size=(4, 4 // group, 3, 3)) * spread).astype(np.float32)
        weights[f"b{k}"] = rng.normal(size=4).astype(np.float32)
        nodes += [("Conv", f"{last} w{k} b{k}", f"c{k}", {"group": group, **PADS}), ("Relu", f"c{k}", f"r{k}")]
        last = f"r{k}"
    proto: onnx.ModelProto = build(nodes, weights, IMAGE, [last])
    check(EqualizeChannels(), proto, tolerance=1e-5)


def test_a_real_cnn_stays_exact_and_says_what_stands_in_the_way() -> None:
    model = real.get("ppocr-cls")
    loaded = models.load(model.path)
    shapes.infer(loaded)
    equal = Equivalence(loaded, list(islice(model.calibration(), 2)))

    def after(_one: Pass, report: Report) -> None:
        if report.changed:
            shapes.infer(loaded)

    clean_up(Target("tensorrt-rtx", opset=23))(loaded.graph, after)
    one = EqualizeChannels()
    report = one(loaded.graph)
    equal.check(one, report, loaded)
    assert (report.changed, report.skipped) == (19, 32)
    assert sum("would take the factors" in note.text for note in report.notes) == 25  # HardSwish, written out
    assert EqualizeChannels()(loaded.graph).changed == 0
