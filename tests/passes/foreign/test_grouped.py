"""GroupQueryAttention, written out and held against ONNX Runtime's own kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.foreign.write_out_fused import WriteOutFused
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit.rewrite import check_skipped, check_written, model, to_graph

RNG = np.random.default_rng(0)
I32 = np.int32


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


INPUTS: dict[str, Any] = {
    "q": ("batch", "rows", 32), "k": ("batch", "rows", 16), "v": ("batch", "rows", 16),
    "pk": ("batch", 1, "past", 16), "pv": ("batch", 1, "past", 16), "l": (I32, ("batch",)), "n": (I32, ()),
}  # fmt: skip
TABLES = {"c": draw(32, 8), "s": draw(32, 8)}
READS = "q k v pk pv l n"


def fed(batch: int, rows: int, past: int) -> dict[str, Any]:
    return {
        "q": draw(batch, rows, 32), "k": draw(batch, rows, 16), "v": draw(batch, rows, 16),
        "pk": draw(batch, 1, past, 16), "pv": draw(batch, 1, past, 16),
        "l": np.full(batch, rows + past - 1, I32), "n": np.array(rows + past, I32),
    }  # fmt: skip


def grouped(reads: str, attrs: dict[str, Any], inputs: dict[str, Any], **weights: Any) -> Any:
    return model(
        ("GroupQueryAttention", reads, "y nk nv", {"num_heads": 2, "kv_num_heads": 1, **attrs}, MICROSOFT),
        inputs=inputs, weights=weights, outputs=("y", "nk", "nv"), opset=21,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(2, 5, 0), (2, 1, 6), (1, 3, 4)], ids=["prompt", "one more", "some more"])
@pytest.mark.parametrize(
    "attrs",
    [
        {}, {"scale": 0.4}, {"softcap": 1.5}, {"local_window_size": 3}, {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 2},
    ],
    ids=str,
)  # fmt: skip
def test_few_heads_of_keys(attrs: dict[str, Any], size: tuple[int, int, int]) -> None:
    turning = "do_rotary" in attrs
    proto = grouped(f"{READS} c s" if turning else READS, attrs, INPUTS, **(TABLES if turning else {}))
    check_written(WriteOutFused(), proto, fed(*size))


def test_without_a_cache() -> None:
    left = {name: INPUTS[name] for name in "q k v l n".split()}
    feeds = {name: value for name, value in fed(2, 5, 0).items() if name in left}
    check_written(WriteOutFused(), grouped("q k v _ _ l n", {}, left), feeds)


def test_queries_keys_and_values_in_one_tensor() -> None:
    inputs = {**{name: INPUTS[name] for name in "pk pv l n".split()}, "q": ("batch", "rows", 64)}
    feeds = {**{name: value for name, value in fed(2, 1, 4).items() if name in inputs}, "q": draw(2, 1, 64)}
    check_written(WriteOutFused(), grouped("q _ _ pk pv l n c s", {"do_rotary": 1}, inputs, **TABLES), feeds)


def test_a_bias_of_pairs() -> None:
    proto = grouped(f"{READS} _ _ _ a", {}, {**INPUTS, "a": (1, 1, "rows", "all")})
    check_written(WriteOutFused(), proto, {**fed(2, 1, 4), "a": draw(1, 1, 1, 5)})


@pytest.mark.parametrize("attrs", [{}, {"local_window_size": 3}])
def test_what_is_not_valid_in_a_cache_is_not_seen(attrs: dict[str, Any]) -> None:
    """The output alone: ONNX Runtime writes over what is not valid, and here it stays in front of the new keys."""
    proto = grouped(f"{READS} c s", {"do_rotary": 1, **attrs}, INPUTS, **TABLES)
    feeds = {**fed(2, 1, 6), "l": np.array([3, 6], I32)}
    graph = to_graph(proto)
    right = Session(graph).run(feeds)["y"]
    assert WriteOutFused()(graph).changed == 1
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], right, atol=1e-5)


@pytest.mark.parametrize(
    ("reads", "attrs", "more", "why"),
    [
        (f"{READS} _ _ _ _ h", {}, {"h": (2,)}, "has the input 'head_sink'"),
        (f"{READS} _ _ p", {}, {"p": (np.int64, ("batch", "rows"))}, "has the input 'position_ids'"),
        (READS, {"smooth_softmax": 1}, {}, "has smooth_softmax=1"),
        (READS, {"sliding_window_cache": 1}, {}, "has sliding_window_cache=1"),
    ],
)
def test_other_forms_stay(reads: str, attrs: dict[str, Any], more: dict[str, Any], why: str) -> None:
    check_skipped(WriteOutFused(), grouped(reads, attrs, {**INPUTS, **more}), why)


def test_onnxruntime_keeps_it() -> None:
    assert not WriteOutFused(parse_target("onnxruntime"))(to_graph(grouped(READS, {}, INPUTS))).changed
