"""Weights in few bits in real TensorRT-RTX engines: they stay what they are, and what would not is left alone."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.compiler import compile
from qcompiler.engines.audit import audit
from qcompiler.engines.base import EngineFile, Profile
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.numerics import blocks
from qcompiler.numerics.blocks import Format
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import GenerationTable
from qcompiler.target import DType
from tests.engines.conftest import Build
from tests.kit import decoder, glu
from tests.kit.graphs import Builder

FORMS: list[tuple[Format, int | None]] = [("int4", 32), ("int4", 64), ("int4", 128), ("int8", None)]
STORED = {"int4": ml_dtypes.int4, "int8": np.int8}
DTYPES = {"int4": DType.INT4_WEIGHT, "int8": DType.INT8_WEIGHT}
DEPTH, WIDTH = 1024, 768


def stored(b: Builder, name: str, shape: tuple[int, int], format: Format, size: int | None) -> str:
    """A weight as the compiler stores it in FP16 graphs: FP16 scales along the depth, or one per output."""
    weight = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    found = blocks.round_to_nearest(weight, size, format)
    how = {"axis": 0, "block_size": size} if size else {"axis": 1}
    return b.dequantized(name, found.values.astype(STORED[format]), found.scales.astype(np.float16), **how)


def rows(format: Format, size: int | None, depth: int = DEPTH, width: int = WIDTH) -> Builder:
    """x [batch, length, depth] times a stored weight, something before and behind. Node `mm`."""
    b = Builder()
    x = b.node("Relu", [b.input("x", ["batch", "length", depth])], "before")
    y = b.node("MatMul", [x, stored(b, "w", (depth, width), format, size)], "mm")
    b.output(b.node("Sigmoid", [y], "behind"))
    return b


def dynamic(depth: int = DEPTH) -> Profile:
    return Profile({"x": ((1, 1, depth), (1, 64, depth), (4, 256, depth))})


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> EngineFile:
    """What `rows` builds to with the weight in FP16."""
    folder = tmp_path_factory.mktemp("half")
    b = Builder()
    x = b.node("Relu", [b.input("x", ["batch", "length", DEPTH])], "before")
    w = b.constant("w", np.random.default_rng(0).standard_normal((DEPTH, WIDTH)).astype(np.float16))
    b.output(b.node("Sigmoid", [b.node("MatMul", [x, w], "mm")], "behind"))
    return TensorRTRTX(sms=("sm89",)).build(b.save(folder / "model.onnx"), folder / "model.engine", [dynamic()])


@pytest.mark.parametrize(("format", "size"), FORMS)
def test_a_stored_weight_stays_stored_with_dynamic_batch_and_length(
    format: Format, size: int | None, build: Build, half: EngineFile
) -> None:
    model, engine = build(rows(format, size), dynamic())
    found = audit(engine.path, model, {"mm": DTYPES[format]})
    assert found.ok
    assert found.compiled == {"mm": f"woq-{format}"}
    saved = DEPTH * WIDTH * (1.5 if format == "int4" else 1)
    code = 200_000  # of a product with a dequantizer inside
    assert saved - code < half.bytes - engine.bytes < saved


@pytest.mark.parametrize(
    ("format", "size", "depth", "width"),
    [("int8", None, 256, 97), ("int4", 32, 256, 97), ("int8", None, 65, 96), ("int4", 128, 128, 96)],
    ids=["odd width", "odd width in blocks", "odd depth", "a single block"],
)
def test_what_is_left_alone_would_be_dequantized_on_every_run(
    format: Format, size: int | None, depth: int, width: int, build: Build
) -> None:
    model, engine = build(rows(format, size, depth, width), dynamic(depth))
    assert audit(engine.path, model, {}).compiled == {"mm": "float"}


@pytest.mark.parametrize(("most", "compiled"), [(1, "float"), (2, "woq-int8")])
def test_int8_weights_need_a_profile_of_more_than_one_row(most: int, compiled: str, build: Build) -> None:
    profile = Profile({"x": ((1, 1, DEPTH), (1, 1, DEPTH), (most, 1, DEPTH))})
    model, engine = build(rows("int8", None), profile)
    assert audit(engine.path, model, {}).compiled == {"mm": compiled}


def test_int4_weights_take_a_single_row(build: Build) -> None:
    model, engine = build(rows("int4", 64), Profile({"x": ((1, 1, DEPTH),) * 3}))
    assert audit(engine.path, model, {}).compiled == {"mm": "woq-int4"}


def merged(flat: bool) -> Builder:
    """Attention with a batch of one, heads merged into an output projection `o`, whose rows may be flattened."""
    b, heads, size, length = Builder(), 4, 64, 128
    parts = []
    for name in "qkv":
        x = b.input(name, [1, length, heads, size])
        parts.append(b.node("Transpose", [x], f"{name}_t", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]))
    scores = b.node("Softmax", [b.node("MatMul", parts[:2], "qk")], "softmax", axis=-1)
    heads_last = b.node("Transpose", [b.node("MatMul", [scores, parts[2]], "av")], "t", perm=[0, 2, 1, 3])
    x = b.node("Reshape", [heads_last, b.constant("merge", np.array([1, length, heads * size]))], "merged")
    if flat:
        x = b.node("Reshape", [x, b.constant("rows", np.array([-1, heads * size]))], "flat")
    y = b.node("MatMul", [x, stored(b, "w", (heads * size, 256), "int8", None)], "o")
    if flat:
        y = b.node("Reshape", [y, b.constant("back", np.array([1, length, 256]))], "unflat")
    b.output(b.node("Add", [y, b.input("residual", [1, length, 256])], "sum"))
    return b


@pytest.mark.parametrize(("flat", "compiled"), [(False, "float"), (True, "woq-int8")])
def test_merged_heads_of_one_batch_need_flat_rows(flat: bool, compiled: str, build: Build) -> None:
    model, engine = build(merged(flat))
    assert audit(engine.path, model, {}).compiled["o"] == compiled


# --- The whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int4-weight", "int8-weight"])
def test_a_decoder_compiles_with_all_its_promises_kept(precision: str, tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=2), tmp_path / "glu.onnx")
    result = compile.compile(
        tmp_path / "glu.onnx",
        data=glu.feeds(4),
        recipe=Recipe(target="tensorrt-rtx:sm89", precision=precision),
        output=tmp_path / "glu.engine",
    )
    told = result.manifest["audit"]
    assert told["mismatches"] == []
    assert told["promised"] == told["confirmed"] == 15
    assert told["compiled"][f"woq-{precision.removesuffix('-weight')}"] == 15


@pytest.mark.parametrize("precision", ["int4-weight", "int8-weight"])
def test_prefill_and_decode_of_a_batch_of_one_keep_their_promises(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HIDDEN": 256, "INNER": 384, "VOCABULARY": 512, "SIZE": 64}.items():
        monkeypatch.setattr(decoder, name, value)
    onnx.save(decoder.decoder(), tmp_path / "decoder.onnx")
    recipe = Recipe(
        target="tensorrt-rtx:sm89", precision=precision, generation=GenerationTable(batch=1, prompt=16, max_length=64)
    )
    data = [decoder.feeds(decoder.tokens(1, 24, seed)) for seed in range(3)]
    result = compile.compile(tmp_path / "decoder.onnx", data=data, recipe=recipe, output=tmp_path / "decoder.engine")
    assert len(result.manifest["engine"]["profiles"]) == 2
    assert result.manifest["audit"]["mismatches"] == []
    assert result.manifest["audit"]["promised"] == 15
