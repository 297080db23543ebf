from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.passes.absorb import absorb
from qcompiler.passes.base import Changed, Pass, Report, Skipped
from qcompiler.passes.channels.smooth_quant import SmoothQuant
from qcompiler.passes.pipelines import clean_up
from qcompiler.runtime import shapes
from qcompiler.target import Target
from qcompiler.verification.equivalence import Equivalence
from tests.kit import models as real
from tests.kit.absorbing import DENSE, IMAGE, TOKENS, build, factors, find, normal, positive
from tests.kit.rewrite import check_untouched, random_feeds, to_graph, whole


def smooth(proto: onnx.ModelProto, one: SmoothQuant) -> tuple[Any, Report]:
    """Runs the pass behind the equivalence check, and again without scales, which must leave everything as it is."""
    graph = to_graph(proto)
    equal = Equivalence(graph, [random_feeds(graph)])
    report = one(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    equal.check(one, report, graph)
    written = whole(graph).SerializeToString(deterministic=True)
    assert SmoothQuant({})(graph).notes == ()
    assert whole(graph).SerializeToString(deterministic=True) == written
    return graph, report


def block() -> onnx.ModelProto:
    """A norm that two layers share, a SiLU that takes nothing, and the sum with the norm's output behind it."""
    return build(
        [
            ("RMSNormalization", "x g", "n"),
            ("MatMul", "n wg", "gate"),
            ("MatMul", "n wu", "up"),
            ("Sigmoid", "gate", "s"),
            ("Mul", "gate s", "silu"),
            ("Mul", "silu up", "h"),
            ("MatMul", "h wd", "y"),
            ("MatMul", "silu wd", "z"),
        ],
        {"g": (8,), "wg": (8, 6), "wu": (8, 6), "wd": (6, 8)},
        TOKENS,
        ["y", "z"],
    )


def test_nothing_asked_nothing_done() -> None:
    check_untouched(SmoothQuant(), block())


def test_each_tensor_is_noted_with_who_takes_it_and_who_makes_up() -> None:
    graph, report = smooth(block(), SmoothQuant({"h": positive(6), "n": positive(8)}))
    assert report.notes == (
        Changed("n", "divided in 'N' (RMSNormalization), multiplied in 'GATE', 'UP'"),
        Changed("h", "divided in 'UP' (MatMul), multiplied in 'Y'"),
    )
    assert len(graph.nodes) == 8


def test_a_layer_between_two_divided_tensors_takes_both() -> None:
    """up_proj is divided for the product behind it and multiplied for the norm before it."""
    graph, _ = smooth(block(), SmoothQuant({"h": positive(6), "n": positive(8)}))
    up = next(node for node in graph.nodes if node.name == "UP").inputs[1].values
    np.testing.assert_allclose(up, normal(8, 6) * positive(8)[:, None] / positive(6), rtol=1e-6)


@pytest.mark.parametrize(
    ("scales", "options", "why"),
    [
        ({"silu": positive(6)}, {}, "no factor of 'SILU' takes it"),
        ({"s": positive(6)}, {}, "no linear node with a constant weight reads it"),
        ({"nowhere": positive(6)}, {}, "there is no such tensor"),
        ({"x": positive(8)}, {"insert": True}, "no linear node with a constant weight reads it"),
        ({"n": positive(5)}, {}, "there are 8 channels and 5 factors"),
        ({"n": -positive(8)}, {"insert": True, "split": True}, "a factor is not positive and finite"),
    ],
)
def test_refused(scales: Any, options: Any, why: str) -> None:
    graph = to_graph(block())
    before = whole(graph).SerializeToString(deterministic=True)
    (note,) = SmoothQuant(scales, **options)(graph).notes
    assert isinstance(note, Skipped)
    assert note.node == next(iter(scales))
    assert why in note.text
    assert whole(graph).SerializeToString(deterministic=True) == before


def test_a_mul_is_inserted_where_nothing_takes_it() -> None:
    graph, report = smooth(block(), SmoothQuant({"silu": positive(6)}, insert=True))
    assert report.notes == (Changed("silu", "inserted Mul divides it in front of 'Z'"),)
    inserted = next(node for node in graph.nodes if node.name == "silu/smooth")
    assert inserted.op == "Mul"
    assert inserted.outputs[0].name == "silu/smoothed"
    assert find(graph, "silu") in next(node for node in graph.nodes if node.name == "H").inputs


@pytest.mark.parametrize(
    ("reader", "weight"),
    [
        (("Conv", "e w", "y", {"group": 2}), (6, 2, 3, 3)),
        (("Conv", "e w", "y", {"group": 4}), (4, 1, 3, 3)),
        (("ConvTranspose", "e w", "y", {"group": 2}), (4, 3, 2, 2)),
    ],
)
def test_a_mul_in_front_of_convolutions(reader: Any, weight: Any) -> None:
    proto = build([("Exp", "x", "e"), reader], {"w": weight}, IMAGE)
    graph, _ = smooth(proto, SmoothQuant({"e": positive(4)}, insert=True))
    assert [node.op for node in graph.nodes] == ["Exp", "Mul", reader[0]]


def test_absorbing_comes_before_doubling_and_doubling_before_inserting() -> None:
    nodes = [("LayerNormalization", "x g b", "t"), DENSE, ("Add", "t y", "z")]
    proto = build(nodes, {"g": (8,), "b": (8,), "w": (8, 8)}, TOKENS, ["z"])
    scales = {"t": positive(8)}
    for options, ops in (
        ({"insert": True}, ["LayerNormalization", "Mul", "MatMul", "Add"]),
        ({"insert": True, "split": True}, ["LayerNormalization", "LayerNormalization", "MatMul", "Add"]),
    ):
        graph, report = smooth(proto, SmoothQuant(scales, **options))
        assert [node.op for node in graph.nodes] == ops
    assert report.notes == (Changed("t", "divided in 'T' (LayerNormalization), multiplied in 'Y'; doubled 'T'"),)


def test_half_precision_that_would_overflow_is_refused() -> None:
    weights = {"g": normal(8).astype(np.float16), "w": (positive(8, 5) * 100).astype(np.float16)}
    nodes = [("LayerNormalization", "x g", "t"), DENSE]
    graph = to_graph(build(nodes, weights, {"x": (np.float16, (2, 5, 8))}))
    (note,) = SmoothQuant({"t": np.full(8, 1e3, np.float32)})(graph).notes
    assert note == Skipped("t", "'w' of 'Y' would leave the range of float16")


@pytest.mark.parametrize(
    ("name", "taken", "doubled", "inserted"),
    [("magika", 2, 0, 0), ("paraphrase-minilm-l3", 6, 6, 0), ("ppocr-rec", 39, 0, 7)],
)
def test_real_models_stay_exact(name: str, taken: int, doubled: int, inserted: int) -> None:
    model = real.get(name)
    loaded = models.load(model.path)
    shapes.infer(loaded)
    feeds = list(islice(model.calibration(), 2))
    equal = Equivalence(loaded, feeds)

    def after(_one: Pass, report: Report) -> None:
        if report.changed:
            shapes.infer(loaded)

    clean_up(Target("tensorrt-rtx", opset=23))(loaded.graph, after)
    plans = []
    for tensor in loaded.graph.tensors().values():
        axis = absorb.channel_axis(tensor)
        if axis is not None and tensor.inputs:
            plan = absorb.find_moves(loaded.graph, tensor, axis, split=True)
            plans.append(absorb.find_insertion(loaded.graph, tensor, axis) if plan.why else plan)
    one = SmoothQuant({plan.tensor.name: factors(plan) for plan in plans}, insert=True, split=True)
    report = one(loaded.graph)
    equal.check(one, report, loaded)
    texts = [note.text for note in report.notes if isinstance(note, Changed)]
    assert sum("doubled" in text for text in texts) == doubled
    assert sum("inserted" in text for text in texts) == inserted + (name == "magika")
    assert len(texts) == taken + doubled + inserted + (name == "magika")
