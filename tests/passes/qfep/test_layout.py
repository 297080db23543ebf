"""Where the rows of a prefix go, as two runs of the decoder show it, and what it leaves there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.passes.qfep.layout import Anchor, Layout, keys_and_values, layout
from qcompiler.passes.qfep.sites import UnfitError, interface
from qcompiler.runtime.session import Session
from tests.kit import decoder
from tests.kit.rewrite import model, to_graph


def laid_out(graph: Any) -> Layout:
    return layout(graph, interface(graph))


@given(axes=st.permutations([1, 2, 3]), sizes=st.tuples(*[st.integers(1, 4)] * 3))
def test_rows_are_arranged_as_the_tensor_is_and_back(axes: list[int], sizes: tuple[int, int, int]) -> None:
    heads, sequence, width = axes
    anchor = Anchor(None, 0, None, (heads, sequence, width), ())
    rows = np.random.default_rng(0).standard_normal(sizes)
    arranged = anchor.arranged(rows)
    assert [arranged.shape[axis] for axis in (0, heads, sequence, width)] == [1, *sizes]
    assert np.array_equal(anchor.rows(arranged), rows)


def test_axes_that_grow_with_the_text_are_its_length() -> None:
    grown = laid_out(to_graph(decoder.decoder(cache=False, layers=1))).grown
    assert grown["l0.k.p"] == (0, 0, 1, 0)
    assert grown["mask"] == (1, 1)


def test_rows_go_in_where_there_are_fewest_heads() -> None:
    (pair,) = laid_out(to_graph(decoder.decoder(cache=False, layers=1))).anchors
    for anchor in pair:
        heads, sequence, width = anchor.axes
        assert anchor.tensor.shape[heads] == decoder.KV_HEADS
        assert anchor.tensor.shape[width] == decoder.SIZE
        assert sequence not in (heads, width)


def test_a_mask_is_cut_to_the_rows_of_the_text_and_keeps_all_keys() -> None:
    found = laid_out(to_graph(decoder.decoder(cache=False, layers=1)))
    cut = {change.reader.name: change.axes for change in found.changes}
    assert cut["L0.SM"] == (0,)
    assert cut["L0.K.P.C"] == (2,)


def test_with_and_without_a_cache_the_same_is_left() -> None:
    ids = (3, 7, 5)
    found = []
    for cache in (True, False):
        graph = to_graph(decoder.decoder(cache=cache))
        face = interface(graph)
        found.append(keys_and_values(graph, face, ids, None if cache else layout(graph, face)))
    assert len(found[0]) == len(found[1]) == decoder.LAYERS
    for one, other in zip(*found, strict=True):
        for first, second in zip(one, other, strict=True):
            assert first.shape == (decoder.KV_HEADS, len(ids), decoder.SIZE)
            assert np.allclose(first, second, atol=1e-5)


def test_what_is_left_is_what_the_cache_holds() -> None:
    graph, ids = to_graph(decoder.decoder(layers=1)), (3, 7)
    ((key, value),) = keys_and_values(graph, interface(graph), ids, None)
    given_ = Session(graph).run(decoder.feeds(np.array([ids]), layers=1))
    assert np.allclose(key, given_["present.0.key"][0], atol=1e-6)
    assert np.allclose(value, given_["present.0.value"][0], atol=1e-6)


def test_a_decoder_that_counts_elements_is_refused() -> None:
    proto = decoder.decoder(cache=False, layers=1)
    graph = to_graph(proto)
    sized = to_graph(
        model(("Size", "input_ids", "y"), inputs={"input_ids": (np.int64, ("batch", "length"))}, outputs=("y",))
    )
    size = sized.nodes[0]
    size.inputs[0] = next(one for one in graph.inputs if one.name == "input_ids")
    graph.nodes.append(size)
    graph.outputs.append(size.outputs[0])
    with pytest.raises(UnfitError, match=r"node 'Y' \(Size\) counts the elements"):
        laid_out(graph)
