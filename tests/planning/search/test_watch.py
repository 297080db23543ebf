"""Which tensors have to be observed for which target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qcompiler.ir import model as models
from qcompiler.planning.placement import attention
from qcompiler.planning.placement.scope import Scope
from qcompiler.planning.search.watch import Watch
from qcompiler.statistics import ranges
from qcompiler.target import parse_target
from tests.kit import glu
from tests.kit.rewrite import model


def test_onnxruntime_also_needs_what_convolutions_write(tmp_path: Path) -> None:
    weights = {name: np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32) for name in "vw"}
    proto = model(
        ("Conv", "x v", "a"), ("Relu", "a", "b"), ("Conv", "b w", "y"), inputs={"x": (1, 16, 8, 8)}, weights=weights
    )
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = models.load(tmp_path / "m.onnx")
    for name, wanted in (("tensorrt-rtx", ["x", "b"]), ("onnxruntime", ["x", "b", "b", "y"])):
        target = parse_target(name)
        found, _ = Scope(target).layers(loaded)
        assert Watch(target).tensors(loaded, found) == wanted


def test_quantized_attention_needs_what_it_multiplies(tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "glu.onnx")
    loaded, target = models.load(tmp_path / "glu.onnx"), parse_target("tensorrt-rtx")
    found, _ = Scope(target).layers(loaded)
    more = attention.tensors_for_attention(loaded.graph)
    assert more
    assert Watch(target, "int8").tensors(loaded, found) == [*Watch(target).tensors(loaded, found), *more]


def test_where_the_rest_computes_in_half_every_float_tensor_has_its_extremes_measured(tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "glu.onnx")
    loaded = models.load(tmp_path / "glu.onnx")
    half, wide = parse_target("tensorrt-rtx"), parse_target("onnxruntime")
    assert Watch(half).points(loaded, ()).ranges == ranges.wanted(loaded)
    assert Watch(wide).points(loaded, ()).ranges == ()
