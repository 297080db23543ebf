"""Attentions of a decoder: where keys and values enter, and what of the graph knows positions but no tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.qfep.sites import UnfitError, frontier, interface, is_baked, positional, sites
from tests.kit import decoder, glu
from tests.kit.rewrite import Spec, model, to_graph

TEXT = {"input_ids": (np.int64, ("batch", "length"))}


def _names(found: set[int], graph: Any) -> set[str]:
    return {name for name, tensor in graph.tensors().items() if id(tensor) in found}


def test_positional_is_what_depends_on_shapes_and_on_no_token() -> None:
    graph = to_graph(decoder.decoder(cache=False, layers=1))
    known = _names(positional(graph), graph)
    assert {"sequence", "queries", "causal", "mask", "cos", "sin"} <= known
    assert not {"input_ids", "x0", "l0.k", "l0.k.p", "l0.s", "logits"} & known


def test_masks_and_positions_of_the_caller_are_positional() -> None:
    graph = to_graph(decoder.decoder(layers=1))
    assert {"attention_mask", "position_ids", "visible", "cos"} <= _names(positional(graph), graph)


@pytest.mark.parametrize("layers", [1, 2])
def test_every_attention_is_found_in_graph_order(layers: int) -> None:
    graph = to_graph(decoder.decoder(cache=False, layers=layers))
    found = sites(graph, positional(graph))
    assert [one.softmax.name for one in found] == [f"L{layer}.A" for layer in range(layers)]
    for layer, one in enumerate(found):
        assert one.key.steps[0][2].name == f"l{layer}.kt"
        assert one.value.steps[0][2].name == f"l{layer}.v.h"
        assert {node.name for node in one.between} == {f"L{layer}.SD", f"L{layer}.SM"}


def test_the_way_of_keys_ends_where_something_is_computed() -> None:
    graph = to_graph(decoder.decoder(cache=False, layers=1))
    (site,) = sites(graph, positional(graph))
    assert {node.op for node, _, _ in site.key.steps[1:]} <= {"Transpose", "Reshape", "Expand", "Unsqueeze"}
    assert site.key.steps[-1][2].name == "l0.k.p"
    assert site.value.steps[-1][2].name == "l0.v"


def test_positions_meet_data_at_rotation_and_mask() -> None:
    graph = to_graph(decoder.decoder(cache=False, layers=1))
    found = {(node.name, tensor.name) for node, _, tensor in frontier(graph, positional(graph), set())}
    assert ("L0.SM", "mask") in found
    assert ("L0.K.P.C", "cos") in found
    assert ("L0.K.H.E", "l0.k.h.many") not in found  # a size, which speaks of the text alone


def test_sizes_count_behind_the_prefix() -> None:
    graph = to_graph(decoder.decoder(cache=False, layers=1))
    passed = {id(node) for node in graph.nodes if node.name == "L0.K.H.E"}
    found = {node.name for node, _, _ in frontier(graph, positional(graph), passed)}
    plain = {node.name for node, _, _ in frontier(graph, positional(graph), set())}
    assert found - plain <= {"L0.K.H.E"}


SOFTMAX: tuple[Spec, ...] = (
    ("Gather", "table input_ids", "x"),
    ("MatMul", "x q", "a"),
    ("Transpose", "x", "b", {"perm": [0, 2, 1]}),
    ("MatMul", "a b", "s"),
    ("Softmax", "s", "p", {"axis": -1}),
)
SQUARE = np.eye(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((*SOFTMAX, ("Relu", "p", "b0"), ("MatMul", "b0 x", "y")), "is not multiplied with values right away"),
        ((("Gather", "table input_ids", "x"), ("Softmax", "x", "y")), "no attention of the form"),
        ((("Gather", "table input_ids", "x"), ("LSTM", "x w r", "y", {"hidden_size": 8})), "is a LSTM"),
    ],
    ids=["something between", "no product", "recurrent"],
)
def test_what_is_not_taken_apart_is_named(nodes: tuple[Spec, ...], why: str) -> None:
    held = {"table": SQUARE, "q": SQUARE, "w": np.zeros((1, 32, 8), np.float32), "r": np.zeros((1, 32, 8), np.float32)}
    read = {name for node in nodes for name in node[1].split()}
    weights = {name: value for name, value in held.items() if name in read}
    graph = to_graph(model(*nodes, inputs=TEXT, weights=weights))
    with pytest.raises(UnfitError, match=why):
        sites(graph, positional(graph))


def test_the_interface_pairs_the_cache() -> None:
    face = interface(to_graph(decoder.decoder(layers=1)))
    assert face.past == tuple((f"past_key_values.0.{kind}", f"present.0.{kind}") for kind in ("key", "value"))
    assert face.filler.ids == "input_ids"
    assert interface(to_graph(glu.stack(layers=1))).past == ()


def test_a_cache_that_nothing_continues_is_refused() -> None:
    graph = to_graph(decoder.decoder(layers=1))
    graph.outputs = [one for one in graph.outputs if one.name != "present.0.value"]
    with pytest.raises(UnfitError, match=r"no output continues the cache input 'past_key_values\.0\.value'"):
        interface(graph)


def test_a_fixed_past_is_refused() -> None:
    graph = to_graph(decoder.decoder(layers=1))
    next(one for one in graph.inputs if one.name == "past_key_values.0.key").shape[2] = 4
    with pytest.raises(UnfitError, match="with a free past"):
        interface(graph)


def test_a_baked_prefix_is_known_by_its_names() -> None:
    graph = to_graph(decoder.decoder(layers=1))
    assert not is_baked(graph)
    graph.nodes[0].name = "qfep.0.joined"
    assert is_baked(graph)
