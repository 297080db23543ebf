"""What is compared of a model: outputs, parts, sources; caches and states count less, and some not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import UsageError
from qcompiler.judge.views import Role, check_ignored, find_views, stand_ins, tensors_of, views_of
from tests.kit import decoder
from tests.kit.rewrite import Spec, model, random_feeds, to_graph

W = np.ones((4, 4), np.float32)
H: Spec = ("MatMul", "x w", "h")


def views(*nodes: Spec, ignored: tuple[str, ...] = (), **options: Any) -> dict[str, tuple[str, str]]:
    options.setdefault("weights", {"w": W})
    graph = to_graph(model(H, *nodes, **options))
    return {one.name: (str(one.role), one.tensor) for one in find_views(graph, random_feeds(graph), ignored)}


def test_an_output_is_a_view() -> None:
    assert views(("Relu", "h", "y")) == {"y": ("output", "y")}


def test_parts_of_a_join_are_views_and_are_named_as_numpy_slices() -> None:
    found = views(("Relu", "h", "r"), ("Concat", "h r", "y", {"axis": 1}))
    assert found == {"y": ("output", "y"), "y[:, 0:4]": ("part", "y"), "y[:, 4:8]": ("part", "y")}


def test_a_softmax_is_judged_by_what_it_reads_less_a_constant() -> None:
    graph = to_graph(model(H, ("Softmax", "h", "y", {"axis": -1}), weights={"w": W}))
    shown, source = views_of(graph)
    assert (shown.role, shown.judged) == (Role.RESULT, False)
    assert (source.role, source.tensor, source.level, source.judged) == (Role.SOURCE, "h", -1, True)


def test_a_sigmoid_is_judged_by_both() -> None:
    found = views(("Sigmoid", "h", "y"))
    assert found == {"y": ("output", "y"), "h (before Sigmoid)": ("source", "h")}


def test_a_part_behind_a_sigmoid_has_its_source() -> None:
    found = views(("Sigmoid", "h", "g"), ("MatMul", "x w", "b"), ("Concat", "b g", "y", {"axis": 1}))
    assert found["y[:, 4:8]"] == ("part", "y")
    assert found["h (before Sigmoid)"] == ("source", "h")


def test_positions_are_shown_and_what_they_are_made_of_is_judged() -> None:
    found = views(("ArgMax", "h", "y", {"axis": 1}))
    assert found == {"y": ("result", "y"), "h (before ArgMax)": ("source", "h")}


def test_classes_by_probability_are_judged_by_logits() -> None:
    found = views(("Softmax", "h", "p"), ("ArgMax", "p", "y", {"axis": 1}))
    assert found == {"y": ("result", "y"), "h (before Softmax)": ("source", "h")}


def test_a_part_that_holds_classes_is_shown_only() -> None:
    nodes: list[Spec] = [("ArgMax", "h", "i", {"axis": 1}), ("Cast", "i", "f", {"to": 1})]
    found = views(*nodes, ("Concat", "h f", "y", {"axis": 1}))
    assert (found["y[:, 0:4]"][0], found["y[:, 4:5]"][0]) == ("part", "result")
    assert found["h (before ArgMax)"] == ("source", "h")


CACHE = {"x": (2, 4), "past": (2, 3), "h0": (2, 4)}


@pytest.mark.parametrize(
    ("nodes", "output", "role"),
    [
        ([("Concat", "past h", "present", {"axis": 1})], "present", "cache"),
        ([("Identity", "past", "copy")], "copy", "passed through"),
        ([("Add", "h h0", "new_h0"), ], "new_h0", "state"),
    ],
)  # fmt: skip
def test_what_the_next_step_reads_is_weak(nodes: list[Spec], output: str, role: str) -> None:
    found = views(*nodes, ("Relu", "h", "y"), inputs=CACHE, outputs=("y", output))
    assert found["y"] == ("output", "y")
    assert found[output] == (role, output)


def test_a_recurrent_layer_s_last_state_is_weak_and_its_output_is_not() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.random((1, 12, 4), np.float32), "r": rng.random((1, 12, 4), np.float32)}
    proto = model(
        ("GRU", "x w r", "y last", {"hidden_size": 4}), inputs={"x": (3, 1, 4)}, outputs=("y", "last"), weights=weights
    )
    assert [one.role for one in views_of(to_graph(proto))] == [Role.OUTPUT, Role.STATE]


def test_where_nothing_else_is_left_states_count() -> None:
    found = views(("Concat", "past h", "present", {"axis": 1}), inputs=CACHE, outputs=("present",))
    assert found["present"] == ("output", "present")


def test_the_user_takes_outputs_out() -> None:
    found = views(("Relu", "h", "y"), ("Neg", "h", "debug"), outputs=("y", "debug"), ignored=("debug",))
    assert found["debug"] == ("ignored", "debug")
    graph = to_graph(model(H, ("Relu", "h", "y"), ("Neg", "h", "debug"), outputs=("y", "debug"), weights={"w": W}))
    assert tensors_of(views_of(graph, ignored=["debug"]), judged=True) == ["y"]


def test_a_constant_output_is_passed_through() -> None:
    found = views(("Relu", "h", "y"), outputs=("y", "w"))
    assert found["w"][0] == "passed through"


def test_an_output_that_is_not_there_cannot_be_ignored_nor_can_all() -> None:
    check_ignored((), ["y"])
    check_ignored(["debug"], ["y", "debug"])
    with pytest.raises(UsageError, match="--ignore-output debgu: the model has no such output; did you mean 'debug'"):
        check_ignored(["debgu"], ["y", "debug"])
    with pytest.raises(UsageError, match="takes out every output"):
        check_ignored(["y", "debug"], ["y", "debug"])


def test_what_a_softmax_reads_in_another_graph_stands_in_for_a_name_that_is_gone() -> None:
    here = views_of(to_graph(model(H, ("Identity", "h", "i"), ("Softmax", "i", "y"), weights={"w": W})))
    there = views_of(to_graph(model(H, ("Softmax", "h", "y"), weights={"w": W})))
    other = views_of(to_graph(model(H, ("Sigmoid", "h", "y"), weights={"w": W})))
    assert stand_ins(here, there, {"i"}) == {"i": "h"}
    assert stand_ins(here, there, set()) == {}
    assert stand_ins(here, other, {"i"}) == {}


def test_a_classifier_that_gives_maps_is_judged_by_its_logits() -> None:
    nodes: list[Spec] = [("MatMul", "x w", "h"), ("Softmax", "h", "p", {"axis": -1})]
    proto = model(*nodes, weights={"w": W}, outputs=("p",), domains=("ai.onnx.ml",))
    proto.graph.node.append(
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_strings=list("abcd"))
    )
    entry = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output[0].CopyFrom(helper.make_value_info("maps", helper.make_sequence_type_proto(entry)))
    graph = to_graph(proto)
    found = [(one.output, one.tensor, one.role) for one in find_views(graph, random_feeds(graph))]
    assert found == [("maps", "p", Role.RESULT), ("maps", "h", Role.SOURCE)]


def test_what_a_sequence_is_made_of_is_judged() -> None:
    proto = model(H, ("Relu", "h", "r"), weights={"w": W}, outputs=("r",))
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["h", "r"], ["both"]))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output[0].CopyFrom(helper.make_value_info("both", kind))
    graph = to_graph(proto)
    found = [(one.output, one.tensor, one.role) for one in find_views(graph, random_feeds(graph))]
    assert found == [("both", "h", Role.OUTPUT), ("both", "r", Role.OUTPUT)]


@pytest.mark.parametrize(
    ("nodes", "amounts"),
    [
        ([("Cast", "h", "y", {"to": 2})], True),  # a picture of bytes
        ([("ArgMax", "h", "i", {"axis": 1}), ("Cast", "i", "f", {"to": 1}), ("Cast", "f", "y", {"to": 2})], False),
        ([("Greater", "h zero", "b"), ("Cast", "b", "y", {"to": 2})], False),
    ],
)
def test_numbers_that_were_rounded_are_amounts_and_classes_are_not(nodes: list[Spec], amounts: bool) -> None:
    graph = to_graph(model(H, *nodes, weights={"w": W, "zero": np.zeros(1, np.float32)}))
    assert [one.amounts for one in views_of(graph) if one.role is Role.RESULT] == [amounts]


def test_logits_of_a_vocabulary_are_what_the_next_token_is_drawn_by() -> None:
    for cache in (True, False):
        drawn = {view.name for view in views_of(to_graph(decoder.decoder(cache=cache))) if view.drawn}
        assert drawn == {"logits"}


def _of_ids(*nodes: Spec, width: int, output: str = "y") -> set[str]:
    """Names of the views that a token is drawn by, of a net that looks ids up in a table of 12 rows."""
    random = np.random.default_rng(0)
    weights = {"table": random.standard_normal((12, 4)), "head": random.standard_normal((4, width))}
    proto = model(
        ("Gather", "table ids", "x"),
        ("MatMul", "x head", "h"),
        *nodes,
        inputs={"ids": (np.int64, (1, 5))},
        outputs=(output,),
        weights={name: value.astype(np.float32) for name, value in weights.items()},
    )
    return {view.name for view in views_of(to_graph(proto)) if view.drawn}


def test_an_output_as_wide_as_the_table_of_ids_is_one_by_any_name_and_classes_of_tokens_are_not() -> None:
    assert _of_ids(width=12, output="h") == {"h"}
    assert _of_ids(("LogSoftmax", "h", "y", {"axis": -1}), width=12) == {"h (before LogSoftmax)"}
    assert _of_ids(("ArgMax", "h", "y", {"axis": -1}), width=12) == set()
    assert _of_ids(width=3, output="h") == set()
