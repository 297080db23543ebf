"""Shorter samples: one named dimension is cut in all inputs alike, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompiler.data.shorten import LEAST, shorten
from qcompiler.ir import model as models
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit import decoder
from tests.kit.rewrite import model

TARGET = parse_target("tensorrt-rtx")


def text_model(folder: Path, *, wired: bool = False) -> models.Model:
    """Two products of tokens [batch, length, 32] with a bias [length, length]; wired: only for 96 tokens."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {n: (rng.standard_normal((32, 32)) / 6).astype(np.float32) for n in ("w1", "w2")}
    nodes: list[tuple[Any, ...]] = [
        ("MatMul", "x w1", "a"),
        ("MatMul", "bias a", "b"),
        ("MatMul", "b w2", "c"),
        ("Add", "c p", "y") if wired else ("Identity", "c", "y"),
    ]
    if wired:
        weights["p"] = np.zeros((96, 32), np.float32)
    proto = model(*nodes, inputs={"x": ("batch", "length", 32), "bias": ("length", "length")}, weights=weights)
    onnx.save(proto, folder / "m.onnx")
    return models.load(folder / "m.onnx")


def feeds(count: int = 8, length: int = 96) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "x": rng.standard_normal((1, length, 32)).astype(np.float32),
            "bias": np.eye(length, dtype=np.float32),
        }
        for _ in range(count)
    ]


def test_the_longest_free_dimension_is_cut_wherever_its_name_stands(tmp_path: Path) -> None:
    loaded, given = text_model(tmp_path), feeds()
    found = shorten(loaded.graph, given, 0.5)
    assert [{name: array.shape for name, array in feed.items()} for feed in found] == [
        {"x": (1, 48, 32), "bias": (48, 48)}
    ] * 8
    np.testing.assert_array_equal(found[3]["x"], given[3]["x"][:, :48])


def test_something_is_left_of_it(tmp_path: Path) -> None:
    loaded = text_model(tmp_path)
    assert shorten(loaded.graph, feeds(), 1e-9)[0]["x"].shape == (1, LEAST, 32)
    assert shorten(loaded.graph, feeds(length=20), 0.1)[0]["x"].shape == (1, 20, 32)


def test_a_model_of_fixed_shapes_keeps_its_samples(tmp_path: Path) -> None:
    proto = model(("Relu", "x", "y"), inputs={"x": (4, 8)})
    onnx.save(proto, tmp_path / "f.onnx")
    given = [{"x": np.ones((4, 8), np.float32)}]
    np.testing.assert_array_equal(shorten(models.load(tmp_path / "f.onnx").graph, given, 0.1)[0]["x"], given[0]["x"])


def test_a_mask_that_counts_cache_and_tokens_is_cut_with_the_tokens(tmp_path: Path) -> None:
    onnx.save(decoder.decoder(), tmp_path / "decoder.onnx")
    loaded = models.load(tmp_path / "decoder.onnx")
    (short,) = shorten(loaded.graph, [decoder.feeds(decoder.tokens(1, 96))], 0.5)
    assert {short[name].shape for name in ("input_ids", "attention_mask", "position_ids")} == {(1, 48)}
    assert short["past_key_values.0.key"].shape[2] == 0
    assert Session(loaded).run(short)["logits"].shape == (1, 48, decoder.VOCABULARY)


def test_what_others_have_indices_into_is_not_cut(tmp_path: Path) -> None:
    inputs = {"x": ("nodes", 4), "edges": (np.int64, (2, "count"))}
    proto = model(("Gather", "x edges", "y"), inputs=inputs)
    onnx.save(proto, tmp_path / "g.onnx")
    graph = models.load(tmp_path / "g.onnx").graph
    x = np.ones((100, 4), np.float32)
    far = [{"x": x, "edges": np.array([[0, 1, 99], [5, 5, 5]])}]
    near = [{"x": x, "edges": np.array([[0, 1, 2], [5, 5, 5]])}]
    assert shorten(graph, far, 0.5)[0]["x"].shape == (100, 4)
    assert shorten(graph, near, 0.5)[0]["x"].shape == (50, 4)


def test_inputs_that_would_not_fit_together_any_more_are_not_cut(tmp_path: Path) -> None:
    nodes = (("Concat", "a b", "c", {"axis": 1}), ("Add", "c m", "y"))
    proto = model(*nodes, inputs={"a": ("n", "k", 4), "b": ("n", "l", 4), "m": ("n", "t", 4)})
    onnx.save(proto, tmp_path / "j.onnx")
    given = [{name: np.ones((1, size, 4), np.float32) for name, size in {"a": 60, "b": 40, "m": 100}.items()}]
    found = shorten(models.load(tmp_path / "j.onnx").graph, given, 0.5)
    assert {name: array.shape[1] for name, array in found[0].items()} == {"a": 60, "b": 40, "m": 100}
