"""A prefix: what the model leaves of it, its file, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler.errors import DataError, ModelError
from qcompiler.passes.qfep import prefix
from qcompiler.passes.qfep.prefix import Prefix
from tests.kit import decoder
from tests.kit.rewrite import model, to_graph


def test_a_prefix_file_reads_back_equal(tmp_path: Path) -> None:
    found = prefix.run(to_graph(decoder.decoder()), (3, 7))
    again = Prefix.load(found.save(tmp_path / "out.prefix.npz"))
    assert again.ids == (3, 7)
    for one, other in zip((*found.keys, *found.values), (*again.keys, *again.values), strict=True):
        assert np.array_equal(one, other)
    with np.load(tmp_path / "out.prefix.npz") as stored:
        assert stored["past_key_values.1.value"].shape == (1, decoder.KV_HEADS, 2, decoder.SIZE)


def test_another_file_is_no_prefix(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", ids=np.zeros(2, np.int64), weights=np.zeros(3))
    with pytest.raises(DataError, match="is no prefix: it needs ids and"):
        Prefix.load(tmp_path / "x.npz")
    rows = np.zeros((2, 3, 4), np.float32)  # three tokens, of two ids
    Prefix((1, 2), (rows,), (rows,)).save(tmp_path / "y.npz")
    with pytest.raises(DataError, match=r"are not \[1, kv_heads, 2, size\]"):
        Prefix.load(tmp_path / "y.npz")


def _edited(proto: onnx.ModelProto, *nodes: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    """The model with other weights, and with nodes in the place of those that write the same."""
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name]), tensor.name))
    for new in nodes:
        at = next((i for i, one in enumerate(proto.graph.node) if set(one.output) & set(new.output)), 0)
        if any(set(one.output) & set(new.output) for one in proto.graph.node):
            del proto.graph.node[at]
        proto.graph.node.insert(at, new)
    return proto


def _of_tokens() -> onnx.ModelProto:
    """The mask hides a token by its id."""
    proto = _edited(
        decoder.decoder(cache=False),
        helper.make_node("And", ["causal", "known4"], ["visible"], name="VISIBLE"),
        helper.make_node("Unsqueeze", ["known", "inner"], ["known4"], name="KNOWN4"),
        helper.make_node("Greater", ["input_ids", "none"], ["known"], name="KNOWN"),
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "inner"))
    nodes = {one.output[0]: one for one in proto.graph.node}
    del proto.graph.node[:]
    moved = ("known", "known4", "visible", "mask")
    nodes["mask"].input[0] = "visible"
    before = [one for name, one in nodes.items() if name not in moved]
    at = next(i for i, one in enumerate(before) if one.output[0] == "causal") + 1
    proto.graph.node.extend([*before[:at], *(nodes[name] for name in moved), *before[at:]])
    return proto


def _without_attention() -> onnx.ModelProto:
    body = [("Gather", "table input_ids", "x"), ("MatMul", "x w", "y")]
    weights = {"table": np.eye(8, dtype=np.float32), "w": np.eye(8, dtype=np.float32)}
    return model(*body, inputs={"input_ids": (np.int64, ("batch", "length"))}, weights=weights)


REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "it is not causal": lambda: _edited(decoder.decoder(cache=False), never=np.float32(0)),
    "masks scores with something computed from the tokens": _of_tokens,
    "it has no attention": _without_attention,
    "the model takes no token ids": lambda: model(("Relu", "x", "y")),
    "takes exactly 4 tokens": lambda: model(
        ("Gather", "table input_ids", "y"),
        inputs={"input_ids": (np.int64, (1, 4))},
        weights={"table": np.eye(8, dtype=np.float32)},
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(why: str) -> None:
    graph = to_graph(REFUSED[why]())
    with pytest.raises(ModelError, match=why):
        prefix.run(graph, (1, 2))
