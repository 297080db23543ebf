"""What sessions and mapped files no longer need goes back to the system."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from qcompiler.ir.signature import Array, Feeds
from qcompiler.runtime.memory import pool, readable, release_pages, return_freed_memory, take_from_pool
from tests.kit.rewrite import model, to_graph, whole

RNG = np.random.default_rng(5)
W = RNG.standard_normal((32, 48)).astype(np.float32)


def test_released_pages_come_back_when_read(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", W)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r", allow_pickle=False)
    before = mapped.copy()
    release_pages([mapped, mapped[3:], W])
    np.testing.assert_array_equal(mapped, before)


def test_pages_of_arrays_in_memory_and_of_none_are_left_alone() -> None:
    before = W.copy()
    release_pages([])
    release_pages([W, W.T, np.zeros(0, np.float32), np.array(1.0)])
    np.testing.assert_array_equal(W, before)


def test_views_of_one_file_are_released_once_whatever_stands_between(tmp_path: Path) -> None:
    W.tofile(tmp_path / "w")
    mapped = np.asarray(np.memmap(tmp_path / "w", np.float32, "r", shape=W.shape))
    views = [mapped[2:], mapped.T, np.frombuffer(mapped.data, np.float32)]
    release_pages(views)
    np.testing.assert_array_equal(views[0], W[2:])
    np.testing.assert_array_equal(views[2], W.reshape(-1))


def test_a_pooled_session_shares_one_arena_and_computes_the_same() -> None:
    graph = to_graph(model(("MatMul", "x w", "a"), ("Relu", "a", "y"), inputs={"x": ("n", 32)}, weights={"w": W}))
    x = {"x": RNG.standard_normal((4, 32)).astype(np.float32)}
    expected = run(graph, x, pooled=False)
    assert pool() is pool()
    np.testing.assert_array_equal(run(graph, x, pooled=True), expected)
    return_freed_memory()
    np.testing.assert_array_equal(run(graph, x, pooled=True), expected)


def run(graph: gs.Graph, feeds: Feeds, *, pooled: bool) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if pooled:
        pool()
        take_from_pool(options)
        assert options.get_session_config_entry("session.use_env_allocators") == "1"
        assert not options.enable_mem_pattern
    session = ort.InferenceSession(whole(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_an_array_that_is_not_aligned_is_copied_once_for_all_who_read_it() -> None:
    odd = np.frombuffer(b"\0" + W.tobytes(), np.uint8)[1:].view(np.float32).reshape(W.shape)
    first, second = readable(odd), readable(odd)
    assert first.array is second.array
    assert first.array.flags.aligned
    np.testing.assert_array_equal(first.array, W)
    assert first.original is odd  # whose address no other array can have while the copy is there
    assert readable(W).array is W


def test_a_copy_is_let_go_with_the_last_who_reads_it() -> None:
    odd = np.frombuffer(b"\0" + W.tobytes(), np.uint8)[1:].view(np.float32).reshape(W.shape)
    gone = weakref.ref(readable(odd).array)
    gc.collect()
    assert gone() is None
