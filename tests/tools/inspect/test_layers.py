"""What the rules of a target say of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.recipe.recipe import Recipe
from qcompiler.tools.inspect.inspection import inspect
from qcompiler.tools.inspect.layers import InspectedLayer
from tests.kit.rewrite import graph_proto, model
from tests.kit.tools.inspected import convnet, saved, weights


def layers(found: Any) -> dict[str, InspectedLayer]:
    return {one.node: one for one in found.layers}


def test_multiply_accumulates_are_those_of_the_shapes(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, convnet()))
    first, second, last = found.layers
    assert (first.macs, second.macs, last.macs) == (256 * 16 * 27, 256 * 32 * 144, 640)
    assert found.macs == sum(one.macs or 0 for one in found.layers)
    assert sum(one.share or 0 for one in found.layers) == pytest.approx(1)
    assert (last.quantizable, last.rule) == (False, "gemv")
    assert found.quantizable == pytest.approx(1 - 640 / found.macs)


def test_an_open_batch_counts_as_one_sample(tmp_path: Path) -> None:
    assert inspect(saved(tmp_path, convnet(("n", 3, 16, 16)))).macs == 256 * (16 * 27 + 32 * 144) + 640


def test_open_pixels_leave_multiply_accumulates_unknown_until_data_or_shapes_tell(tmp_path: Path) -> None:
    path = saved(tmp_path, convnet(("n", 3, "h", "w")))
    found = inspect(path)
    assert (found.macs, found.quantizable) == (None, None)
    assert all(one.share is None for one in found.layers)
    assert "give --data" in found.problems[0]
    shapes = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    assert inspect(path, recipe=Recipe(shapes=shapes)).macs == 2 * (64 * (16 * 27 + 32 * 144) + 640)
    # A batch of samples is looked at one by one
    assert inspect(path, data=[{"x": np.ones((3, 3, 8, 8), np.float32)}]).macs == 64 * (16 * 27 + 32 * 144) + 640


def mixed(path: Path) -> Path:
    """A product, an LSTM, an Einsum and an If whose branches have one product and two."""
    then = graph_proto([("MatMul", "a w", "t")], {}, ["t"])
    other = graph_proto([("MatMul", "a w", "o"), ("MatMul", "o w", "p")], {}, ["p"])
    nodes = (
        ("MatMul", "x w", "a"),
        ("If", "c", "b", {"then_branch": then, "else_branch": other}),
        ("LSTM", "b wx wh", "l", {"hidden_size": 32}),
        ("Squeeze", "l one", "m"),
        ("Einsum", "m w", "y", {"equation": "abc,cd->abd"}),
    )
    own = weights(w=(32, 32), wx=(1, 128, 32), wh=(1, 128, 32)) | {"one": np.array([1])}
    return saved(path, model(*nodes, inputs={"x": (2, 8, 32), "c": (np.bool_, ())}, weights=own, opset=18))


@pytest.mark.parametrize(("flag", "inner"), [(True, 1), (False, 2)])
def test_inspect_and_compile_count_the_same_work(tmp_path: Path, flag: bool, inner: int) -> None:
    path, each = mixed(tmp_path), 16 * 32 * 32
    rng = np.random.default_rng(8)
    data = [{"x": rng.standard_normal((2, 8, 32)).astype(np.float32), "c": np.array(flag)} for _ in range(4)]
    recipe = Recipe(target="onnxruntime")  # which keeps the LSTM as it is
    found = inspect(path, data=data, recipe=recipe)
    assert found.macs == each * (1 + inner + 8 + 1)
    assert not found.problems
    plan = quantize(path, data=data, recipe=recipe, output=tmp_path / "out" / "q.onnx").manifest
    assert plan["macs"]["total"] == found.macs
    assert plan["macs"]["uncounted"] == []
    assert found.quantizable is not None
    assert plan["macs"]["quantized_share"] <= found.quantizable < 0.3  # two products, and one that both branches have
    assert inspect(path, recipe=recipe).macs == each * 12  # without data the branch with more work


def test_what_nobody_can_count_is_said(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w", "a"),
        ("CDist", "a a", "y", {}, "com.microsoft"),
        inputs={"x": (8, 32)},
        weights=weights(w=(32, 32)),
        domains=("com.microsoft",),
    )
    found = inspect(saved(tmp_path, proto))
    assert found.macs == 8 * 32 * 32
    assert found.problems == ("shares leave out what nobody can count: 'Y' (CDist)",)


def test_what_stays_float_has_rule_and_reason(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w1", "a"),
        ("MatMul", "a b", "c"),
        ("MatMul", "c w2", "y"),
        inputs={"x": (2, 8, 32), "b": (2, 32, 32)},
        weights=weights(w1=(32, 32), w2=(32, 8)),
    )
    found = inspect(saved(tmp_path, proto), recipe=Recipe(keep=("^A$",)))
    assert {name: one.rule for name, one in layers(found).items()} == {"A": "kept", "C": "attention", "Y": "tiny"}
    assert all(one.why for one in found.layers)
    rows = found.to_json()["stays_float"]
    assert [row["rule"] for row in rows] == ["kept", "attention", "tiny"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_the_target_decides_what_can_be_quantized(tmp_path: Path) -> None:
    proto = model(("ConvTranspose", "x w", "y"), inputs={"x": (1, 16, 8, 8)}, weights=weights(w=(16, 32, 2, 2)))
    path = saved(tmp_path, proto)
    assert layers(inspect(path))["Y"].rule == "no-kernel"
    assert layers(inspect(path, recipe=Recipe(target="tensorrt")))["Y"].quantizable


def test_rows_are_counted_in_the_feeds_as_they_were_given(tmp_path: Path) -> None:
    proto = model(("Gemm", "x w", "y"), inputs={"x": ("rays", 32)}, weights=weights(w=(32, 48)))
    path = saved(tmp_path, proto)
    rng = np.random.default_rng(0)
    one = {"x": ((1, 32),) * 3}
    for rows, asked, rule in ((64, None, "linear"), (1, None, "linear"), (1, one, "gemv")):
        data = [{"x": rng.standard_normal((rows, 32)).astype(np.float32)}] * 3
        found = inspect(path, data=data, recipe=Recipe(shapes=asked))
        assert [(one.rule, one.macs) for one in found.layers] == [(rule, 32 * 48)]
