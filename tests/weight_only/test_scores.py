"""Which layers give queries and keys."""

from __future__ import annotations

import numpy as np

from qcompiler.weight_only.scores import scoring
from tests.kit import glu
from tests.kit.rewrite import model, to_graph


def names(*wanted: str) -> list[str]:
    return [f"L0.{one}" for one in wanted]


def test_queries_and_keys_are_found_through_heads_and_rotations() -> None:
    every = [*names("Q", "K", "V", "O", "GATE", "UP", "DOWN"), "LOGITS"]
    for rope in (True, False):
        assert scoring(to_graph(glu.stack(layers=1, rope=rope)), every) == set(names("Q", "K"))


def test_the_walk_ends_at_products_that_are_not_asked_about() -> None:
    assert scoring(to_graph(glu.stack(layers=1)), names("Q", "O")) == set(names("Q"))


def test_the_operator_has_queries_and_keys_in_front() -> None:
    weights = {name: np.eye(8, dtype=np.float32) for name in ("a", "b", "c")}
    nodes = (
        ("MatMul", "x a", "q"),
        ("MatMul", "x b", "k"),
        ("MatMul", "x c", "v"),
        ("Attention", "q k v", "y", {"q_num_heads": 2, "kv_num_heads": 2}),
    )
    graph = to_graph(model(*nodes, inputs={"x": (1, 4, 8)}, outputs=("y",), weights=weights))
    assert scoring(graph, ["Q", "K", "V"]) == {"Q", "K"}


def test_a_model_without_attention_has_none() -> None:
    graph = to_graph(model(("MatMul", "x a", "y"), inputs={"x": (4, 8)}, weights={"a": np.eye(8, dtype=np.float32)}))
    assert scoring(graph, ["Y"]) == frozenset()
