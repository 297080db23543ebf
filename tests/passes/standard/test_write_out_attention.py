from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from qcompiler.ir import graph as graphs
from qcompiler.passes.standard.write_out_attention import WriteOutAttention
from qcompiler.runtime.session import Session
from tests.kit.rewrite import check, check_skipped, model, to_graph, whole

RNG = np.random.default_rng(3)
LOWEST = float(np.finfo(np.float32).min)
ROWS, KEYS, PAST = 5, 7, 3


def heads(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def attention(
    feed: dict[str, Any], attrs: dict[str, Any], outputs: str = "y", opset: int = 23, fixed: bool = False
) -> onnx.ModelProto:
    """Attention over inputs named q k v m pk pv n, whatever of them the feed has; batch and lengths are open."""
    order = ["q", "k", "v", "m", "pk", "pv", "n"]
    last = max(i for i, name in enumerate(order) if name in feed)
    reads = " ".join(name if name in feed else "_" for name in order[: last + 1])
    inputs = {name: (value.dtype, value.shape if fixed else open_dims(value)) for name, value in feed.items()}
    written = [name for name in outputs.split() if name != "_"]
    proto = model(("Attention", reads, outputs, attrs), inputs=inputs, outputs=written, opset=opset)
    for value in proto.graph.output:
        rank = feed["q"].ndim if value.name == "y" else 4
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [None] * rank))
    proto.ir_version = 11
    return proto


def open_dims(value: Any) -> tuple[Any, ...]:
    shape: tuple[int, ...] = value.shape
    if value.dtype == np.bool_ or len(shape) < 3:
        return (None,) * len(shape)
    return (None, shape[1], None, shape[3]) if len(shape) == 4 else (None, None, shape[2])


def qkv(queries: int = 4, keys: int = 2, packed: bool = False, keys_long: int = KEYS) -> dict[str, Any]:
    """q, k and v of 8 and 6 wide heads."""
    if packed:
        return {
            "q": heads(2, ROWS, queries * 8), "k": heads(2, keys_long, keys * 8), "v": heads(2, keys_long, keys * 6)
        }  # fmt: skip
    return {"q": heads(2, queries, ROWS, 8), "k": heads(2, keys, keys_long, 8), "v": heads(2, keys, keys_long, 6)}


def cache(keys: int = 2, past: int = PAST) -> dict[str, Any]:
    return {"pk": heads(2, keys, past, 8), "pv": heads(2, keys, past, 6)}


def boolean(*shape: int) -> Any:
    """A mask in which every row sees its first key."""
    mask = RNG.random(shape) > 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("causal", [0, 1])
def test_heads_in_every_form(opset: int, fixed: bool, packed: bool, keys: int, causal: int) -> None:
    attrs = {"is_causal": causal, **({"q_num_heads": 4, "kv_num_heads": keys} if packed else {})}
    feed = qkv(4, keys, packed)
    graph, _ = check(WriteOutAttention(), attention(feed, attrs, opset=opset, fixed=fixed), feed)
    assert not any(graphs.is_op(node, "Attention") for node in graph.nodes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_a_cache_is_a_concat(packed: bool, past: int, causal: int, mask: str | None) -> None:
    attrs = {"is_causal": causal, **({"q_num_heads": 4, "kv_num_heads": 2} if packed else {})}
    feed = {**qkv(packed=packed), **cache(past=past)}
    if mask is not None:
        feed["m"] = boolean(2, 1, ROWS, KEYS + past) if mask == "bool" else heads(ROWS, KEYS + past)
    graph, _ = check(WriteOutAttention(), attention(feed, attrs, "y ok ov"), feed)
    assert sum(graphs.is_op(node, "Concat") for node in graph.nodes) == 2


@pytest.mark.parametrize(
    "shape", [(ROWS, KEYS), (1, ROWS, KEYS), (4, ROWS, KEYS), (2, 1, ROWS, KEYS), (2, 4, ROWS, KEYS)]
)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks_of_every_shape(shape: tuple[int, ...], kind: str, causal: int) -> None:
    feed = {**qkv(), "m": boolean(*shape) if kind == "bool" else heads(*shape)}
    check(WriteOutAttention(), attention(feed, {"is_causal": causal}), feed)


@pytest.mark.parametrize("shape", [(1, KEYS), (2, 1, 1, KEYS), (KEYS,)])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks_that_onnx_runtime_does_not_take(shape: tuple[int, ...], kind: str, causal: int) -> None:
    feed = {**qkv(), "m": boolean(*shape) if kind == "bool" else heads(*shape)}
    proto = attention(feed, {"is_causal": causal})
    graph = to_graph(proto)
    assert WriteOutAttention()(graph).changed == 1
    (ours,) = Session(graph, optimize=False).run(feed).values()
    # ONNX's reference takes the rows of a causal mask from the mask that is given, so that gets all of them.
    (theirs,) = ReferenceEvaluator(proto).run(None, {**feed, "m": np.broadcast_to(feed["m"], (2, 4, ROWS, KEYS))})
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)


@pytest.mark.parametrize("hidden", [False, -np.inf, LOWEST, -1e9])
@pytest.mark.parametrize("causal", [0, 1])
def test_a_row_that_sees_nothing_is_what_onnx_runtime_makes_of_it(hidden: Any, causal: int) -> None:
    mask = boolean(2, 1, ROWS, KEYS)
    mask[0, 0, 2] = False
    mask = mask if hidden is False else np.where(mask, 0, hidden).astype(np.float32)
    feed = {**qkv(), "m": mask}
    graph, report = check(WriteOutAttention(), attention(feed, {"is_causal": causal}), feed)
    assert report.changed == 1
    assert any(graphs.is_op(node, "ReduceMax") for node in graph.nodes)


@pytest.mark.parametrize("valid", [(7, 5), (7, 3)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [False, True])
def test_only_what_is_filled_of_a_cache_is_seen(valid: tuple[int, int], causal: int, mask: bool) -> None:
    feed = {**qkv(), "n": np.array(valid), **({"m": boolean(ROWS, KEYS)} if mask else {})}
    check(WriteOutAttention(), attention(feed, {"is_causal": causal}, opset=24), feed)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_the_products_can_be_an_output(mode: int, softcap: float) -> None:
    feed = {**qkv(), "m": heads(ROWS, KEYS)}
    attrs = {"qk_matmul_output_mode": mode, "softcap": softcap, "scale": 0.7}
    check(WriteOutAttention(), attention(feed, attrs, "y _ _ qk"), feed)


def test_a_row_that_sees_nothing_has_no_probabilities() -> None:
    mask = boolean(ROWS, KEYS)
    mask[2] = False
    feed = {**qkv(), "m": mask}
    check(WriteOutAttention(), attention(feed, {"qk_matmul_output_mode": 3}, "y _ _ qk"), feed)


@pytest.mark.parametrize("precision", [1, 10, 11])
def test_the_softmax_may_be_wider(precision: int) -> None:
    feed = qkv()
    proto = attention(feed, {"softmax_precision": precision})
    graph, _ = check(WriteOutAttention(), proto, feed)
    assert sum(graphs.is_op(node, "Cast") for node in graph.nodes) == (2 if precision == 11 else 0)


def test_it_is_what_the_reference_computes() -> None:
    feed = {**qkv(packed=True), **cache(), "m": boolean(2, 4, ROWS, KEYS + PAST)}
    proto = attention(feed, {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1, "softcap": 3.0}, "y ok ov")
    graph, _ = check(WriteOutAttention(), proto, feed)
    ours, theirs = (ReferenceEvaluator(one).run(None, feed) for one in (whole(graph), proto))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(other), atol=1e-5)


def test_a_constant_mask_that_leaves_no_row_blind_costs_nothing_more() -> None:
    feed = qkv()
    proto = attention({**feed, "m": boolean(ROWS, KEYS)}, {})
    proto.graph.input.pop()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(heads(ROWS, KEYS), "m"))
    graph, _ = check(WriteOutAttention(), proto, feed)
    assert not any(graphs.is_op(node, "ReduceMax", "Greater") for node in graph.nodes)


def test_heads_of_unknown_number_stay() -> None:
    proto = attention(qkv(), {})
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "heads"
    check_skipped(WriteOutAttention(), proto, "heads")
