from __future__ import annotations

import numpy as np

from qcompiler.passes.base import Fact
from qcompiler.passes.cleanup.unshare_weights import UnshareWeights
from tests.kit import facts
from tests.kit.rewrite import check, check_untouched, graph_proto, model, to_graph

W = np.random.default_rng(5).standard_normal((4, 4)).astype(np.float32)


def test_two_matmuls_get_a_weight_each_over_one_array() -> None:
    proto = model(("MatMul", "x w", "a"), ("MatMul", "a w", "y"), weights={"w": W})
    graph, report = check(UnshareWeights(), proto, ops=["MatMul", "MatMul"])
    first, second = (node.inputs[1] for node in graph.nodes)
    assert (first.name, second.name) == ("w_1", "w")
    assert np.shares_memory(first.values, second.values)
    assert report.changed == 1


def test_a_tied_embedding_is_the_tables_and_the_weights_own() -> None:
    proto = model(
        ("Gather", "w i", "g"),
        ("Transpose", "w", "t"),
        ("MatMul", "g t", "y"),
        inputs={"i": (np.int64, (3,))},
        weights={"w": W},
    )
    graph, _ = check(UnshareWeights(), proto, ops=["Gather", "Transpose", "MatMul"])
    assert graph.nodes[0].inputs[0].name == "w"
    assert graph.nodes[1].inputs[0].name == "w_1"


def test_a_transpose_with_two_readers_is_doubled() -> None:
    proto = model(("Transpose", "w", "t"), ("MatMul", "x t", "a"), ("MatMul", "a t", "y"), weights={"w": W})
    graph, _ = check(UnshareWeights(), proto, ops=["Transpose", "Transpose", "MatMul", "MatMul"])
    assert facts.verify(Fact.UNSHARED, graph) == []


def test_a_weight_that_is_also_added_somewhere_is_copied() -> None:
    check(
        UnshareWeights(), model(("MatMul", "x w", "a"), ("Add", "w w", "b"), ("MatMul", "a b", "y"), weights={"w": W})
    )


def test_a_matrix_times_itself_reads_two() -> None:
    proto = model(("MatMul", "w w", "a"), ("MatMul", "x a", "y"), weights={"w": W})
    graph, _ = check(UnshareWeights(), proto, ops=["MatMul", "MatMul"])
    assert graph.nodes[0].inputs[0] is not graph.nodes[0].inputs[1]


def test_a_weight_of_the_outer_graph_that_a_branch_reads_is_copied() -> None:
    then = graph_proto([("MatMul", "x w", "t")], {}, ["t"])
    other = graph_proto([("Neg", "x", "o")], {}, ["o"])
    proto = model(
        ("MatMul", "x w", "a"),
        ("If", "flag", "b", {"then_branch": then, "else_branch": other}),
        ("Add", "a b", "y"),
        inputs={"x": (2, 4), "flag": (bool, ())},
        weights={"w": W},
    )
    check(UnshareWeights(), proto, ops=["MatMul", "If", "Add"])


def test_weights_of_their_own_are_left_alone() -> None:
    proto = model(("MatMul", "x w", "a"), ("Gemm", "a v", "y"), weights={"w": W, "v": W})
    check_untouched(UnshareWeights(), proto)


def test_a_shared_constant_that_is_no_weight_is_left_alone() -> None:
    proto = model(("Add", "x c", "a"), ("Mul", "a c", "y"), weights={"c": W[0]})
    check_untouched(UnshareWeights(), proto)


def test_a_matmul_of_activations_is_left_alone() -> None:
    graph = to_graph(model(("MatMul", "x x", "y"), inputs={"x": (4, 4)}))
    assert UnshareWeights()(graph).notes == ()
