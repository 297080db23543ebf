"""The proof of a prefix: what it runs, and what it refuses."""

from __future__ import annotations

from qcompiler.outliers.qfep import proof
from qcompiler.passes.qfep import prefix
from qcompiler.passes.qfep.sites import interface
from tests.kit import decoder
from tests.kit.rewrite import to_graph


def test_a_caller_with_the_prefix_in_the_cache_gets_the_same() -> None:
    graph = to_graph(decoder.decoder())
    found, face = prefix.run(graph, (3, 7, 5)), interface(graph)
    feeds = face.filler.feed(decoder.tokens(2, 6).tolist())
    assert proof.prove(graph, graph, found, [feeds], baked=False) <= 1e-5
    given_by_cache = found.in_cache(feeds, face)
    assert given_by_cache["attention_mask"].shape == (2, 9)
    assert given_by_cache["position_ids"][0].tolist() == [3, 4, 5, 6, 7, 8]
    assert given_by_cache["past_key_values.0.key"].shape == (2, decoder.KV_HEADS, 3, decoder.SIZE)


def test_texts_lose_their_first_token_only_where_it_is_the_one_that_is_meant() -> None:
    face = interface(to_graph(decoder.decoder()))
    feeds = face.filler.feed([[1, 5, 6], [1, 7, 8]])
    shorter = proof.without_first(feeds, face, 1)
    assert shorter["input_ids"].tolist() == [[5, 6], [7, 8]]
    assert shorter["attention_mask"].shape == (2, 2)
    assert shorter["position_ids"].tolist() == [[0, 1]] * 2
    assert proof.without_first(feeds, face, 2) is feeds
    alone = face.filler.feed([[1]])
    assert proof.without_first(alone, face, 1) is alone
