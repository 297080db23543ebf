"""Stand-ins for what draws random numbers: the same in every run, of the right distribution, type and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.passes.cleanup.inline_functions import InlineFunctions
from qcompiler.runtime.randomness import draws, held, in_proto, random_nodes
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

X = np.random.default_rng(0).random((300, 200)).astype(np.float32)
DROPOUT = {"ratio": np.float32(0.25), "training": np.array(True)}


def ran(proto: onnx.ModelProto, x: Any = X, **options: Any) -> Any:
    return Session((proto, {}), **options).run({"x": np.asarray(x)})["y"]


def drawing(*nodes: Spec, opset: int = 17, weights: Any = None, dtype: Any = np.float32) -> onnx.ModelProto:
    return model(*nodes, inputs={"x": (dtype, ("n", "m"))}, opset=opset, weights=weights)


@pytest.mark.parametrize("opset", [9, 13, 17, 21, 23])
@pytest.mark.parametrize(
    ("spec", "mean", "deviation"),
    [
        (("RandomNormalLike", "x", "y", {"mean": 1.0, "scale": 2.0}), 1.0, 2.0),
        (("RandomNormal", "", "y", {"shape": [300, 200]}), 0.0, 1.0),
        (("RandomUniformLike", "x", "y", {"low": -1.0, "high": 3.0}), 1.0, 4 / 12**0.5),
        (("RandomUniform", "", "y", {"shape": [300, 200], "high": 2.0}), 1.0, 2 / 12**0.5),
    ],
)
def test_numbers_are_those_of_the_distribution_and_the_same_in_every_run(
    spec: Spec, mean: float, deviation: float, opset: int
) -> None:
    proto = drawing(spec, opset=opset)
    first, again = ran(proto), ran(proto, quick=True)
    assert first.shape == (300, 200)
    np.testing.assert_array_equal(first, again)
    assert first.mean() == pytest.approx(mean, abs=0.03)
    assert first.std() == pytest.approx(deviation, rel=0.02)
    flat = first.ravel()
    for step in (1, 2, 200):
        assert abs(np.corrcoef(flat[:-step], flat[step:])[0, 1]) < 0.02


def test_another_draw_and_another_node_give_other_numbers_of_the_same_distribution() -> None:
    proto = drawing(("RandomNormalLike", "x", "a"), ("RandomNormalLike", "x", "b"), ("Sub", "a b", "y"))
    difference = ran(proto)
    assert difference.std() == pytest.approx(2**0.5, rel=0.02)
    other = ran(proto, draw=1)
    assert abs(np.corrcoef(difference.ravel(), other.ravel())[0, 1]) < 0.02
    assert other.std() == pytest.approx(2**0.5, rel=0.02)


def test_without_a_draw_the_operators_are_as_they_were_written() -> None:
    session = Session((drawing(("RandomNormalLike", "x", "y")), {}), draw=None)
    assert not np.array_equal(session.run({"x": X})["y"], session.run({"x": X})["y"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("stated", [None, TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("opset", [13, 17])
def test_the_type_is_the_stated_one_else_that_of_the_input(dtype: Any, stated: int | None, opset: int) -> None:
    options = {} if stated is None else {"dtype": stated}
    proto = drawing(("Identity", "x", "i"), ("RandomNormalLike", "i", "y", options), opset=opset, dtype=dtype)
    assert ran(proto, X.astype(dtype)).dtype == (dtype if stated is None else helper.tensor_dtype_to_np_dtype(stated))


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (3, 0, 2), (2, 3, 4)])
def test_any_shape_also_an_empty_one(shape: tuple[int, ...]) -> None:
    proto = model(("RandomUniformLike", "x", "y"), inputs={"x": (np.float32, shape)})
    assert ran(proto, np.zeros(shape, np.float32)).shape == shape


def test_bernoulli_draws_by_each_probability() -> None:
    found = ran(drawing(("Bernoulli", "x", "y")), np.repeat(np.linspace(0, 1, 5, dtype=np.float32), 20000)[None])
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_allclose(found.reshape(5, -1).mean(1), [0, 0.25, 0.5, 0.75, 1], atol=0.01)


def test_multinomial_draws_classes_by_their_logarithms() -> None:
    shares = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-9]], np.float32)
    found = ran(drawing(("Multinomial", "x", "y", {"sample_size": 20000})), np.log(shares))
    assert found.dtype == np.int32
    counted = np.stack([np.bincount(row, minlength=3) for row in found]) / 20000
    np.testing.assert_allclose(counted, shares, atol=0.01)


def test_dropout_in_training_mode_drops_its_share_and_says_which() -> None:
    proto = model(
        ("Dropout", "x ratio training", "y mask"),
        inputs={"x": ("n", "m")},
        outputs=("y", "mask"),
        weights=DROPOUT,
    )
    found = Session((proto, {})).run({"x": X + 1})
    assert found["mask"].dtype == np.bool_
    assert found["mask"].mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(found["y"], np.where(found["mask"], (X + 1) / 0.75, 0), rtol=1e-6)


def test_dropout_that_is_told_at_run_time_passes_all_outside_of_training() -> None:
    proto = model(("Dropout", "x ratio t", "y"), inputs={"x": ("n", "m"), "t": (bool, ())}, weights=DROPOUT)
    session = Session((proto, {}))
    np.testing.assert_array_equal(session.run({"x": X, "t": np.array(False)})["y"], X)
    assert (session.run({"x": X, "t": np.array(True)})["y"] == 0).mean() == pytest.approx(0.25, abs=0.01)


def looping() -> onnx.ModelProto:
    body = graph_proto(
        [("RandomNormalLike", "x", "drawn"), ("Identity", "c", "go")],
        {"i": (np.int64, ()), "c": (bool, ())},
        ["go", "drawn"],
    )
    return drawing(
        ("Loop", "count _", "y", {"body": body}),
        weights={"count": np.array(3, np.int64)},
    )


def test_bodies_are_held_too_and_iterations_differ() -> None:
    found = ran(looping())
    np.testing.assert_array_equal(found, ran(looping()))
    assert found.shape == (3, 300, 200)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.corrcoef(found[first].ravel(), found[second].ravel())[0, 1]) < 0.02


def with_function() -> onnx.ModelProto:
    noisy = helper.make_function(
        "own",
        "Noisy",
        ["v"],
        ["w"],
        [helper.make_node("RandomNormalLike", ["v"], ["e"]), helper.make_node("Add", ["v", "e"], ["w"])],
        [helper.make_opsetid("", 17)],
    )
    proto = drawing(("Identity", "x", "i"), ("Identity", "i", "y"))
    proto.graph.node[0].CopyFrom(helper.make_node("Noisy", ["x"], ["i"], name="first", domain="own"))
    proto.graph.node[1].CopyFrom(helper.make_node("Noisy", ["i"], ["y"], name="second", domain="own"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(noisy)
    return proto


def test_functions_are_held_and_draw_the_same_when_they_are_inlined() -> None:
    graph = to_graph(with_function())
    assert [node.name for node in random_nodes(graph)] == ["first", "second"]
    before = Session(graph).run({"x": X})["y"]
    assert (before - X).std() == pytest.approx(2**0.5, rel=0.02)
    InlineFunctions()(graph)
    assert [node.op for node in random_nodes(graph)] == ["RandomNormalLike"] * 2
    np.testing.assert_array_equal(Session(graph).run({"x": X})["y"], before)


def test_a_file_is_held_as_the_loaded_model_is(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(drawing(("RandomNormalLike", "x", "y")), path)
    np.testing.assert_array_equal(
        Session(path).run({"x": X})["y"], Session(models.load(path), outputs=["y"]).run({"x": X})["y"]
    )


def test_the_model_that_is_given_stays_as_it_is_and_one_that_draws_nothing_is_handed_on() -> None:
    proto = drawing(("RandomNormalLike", "x", "y"))
    before = proto.SerializeToString()
    assert held(proto) is not proto
    assert proto.SerializeToString() == before
    plain = drawing(("Relu", "x", "y"))
    assert held(plain) is plain


def test_opsets_that_are_too_old_stay_random() -> None:
    proto = drawing(("RandomNormalLike", "x", "y"), opset=8)
    assert [node.op_type for node in held(proto).graph.node] == ["RandomNormalLike"]


@pytest.mark.parametrize(
    ("spec", "weights", "expected"),
    [
        (("Dropout", "x ratio training", "y"), DROPOUT, True),
        (("Dropout", "x ratio training", "y"), {**DROPOUT, "training": np.array(False)}, False),
        (("Dropout", "x ratio", "y"), {"ratio": DROPOUT["ratio"]}, False),
        (("Bernoulli", "x", "y"), {}, True),
        (("Relu", "x", "y"), {}, False),
    ],
)
def test_what_draws(spec: Spec, weights: Any, expected: bool) -> None:
    (node,) = to_graph(drawing(spec, weights=weights)).nodes
    assert draws(node) is expected


def test_nodes_in_bodies_are_named() -> None:
    proto = looping()
    assert in_proto(proto)
    assert [node.name for node in random_nodes(to_graph(proto))] == ["DRAWN"]


def test_onnx_runtime_lacks_the_newest_ones_and_the_stand_ins_run() -> None:
    """Where this fails, ONNX Runtime has caught up, and opsets may be raised further."""
    proto = drawing(("RandomNormalLike", "x", "y"), opset=23)
    with pytest.raises(ModelError, match="no kernel for node 'Y' .RandomNormalLike of opset 22. .* below 22"):
        Session((proto, {}), draw=None, older=False)
    assert ran(proto).shape == X.shape
