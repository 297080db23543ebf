"""Which layers are to blame: broken ones are named first, and nobody is where all is well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import quantize, verify
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.verification.compare import Verification
from qcompiler.verification.drift import trace
from qcompiler.verification.suspects import Suspect, told
from tests.kit import glu
from tests.kit import models as real
from tests.kit.rewrite import model, to_graph
from tests.kit.verification.chain import WEIGHTS, Samples, chain, changed
from tests.kit.verification.detector import detector, pictures
from tests.kit.verification.mutations import KINDS, broken, layers

Feeds = list[dict[str, Any]]
Cases = dict[str, tuple[Path, onnx.ModelProto, Feeds, float]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Float model, quantized model, other data, SQNR there: a detector, a decoder that was smoothed, a real CNN."""
    folder = tmp_path_factory.mktemp("suspects")
    found: Cases = {}
    cnn = real.get("ppocr-cls")
    cases: dict[str, tuple[onnx.ModelProto | Path, Feeds, Feeds]] = {
        "detector": (detector(), pictures(24, 0), pictures(3, 1)),
        "decoder": (glu.stack(channels=glu.OUTLIERS, layers=2), glu.feeds(24), glu.feeds(3, seed=1)),
        "real": (
            cnn.path,
            list(itertools.islice(cnn.calibration(), 16)),
            list(itertools.islice(cnn.evaluation(), 3)),
        ),
    }
    for name, (source, data, other) in cases.items():
        path = source if isinstance(source, Path) else folder / f"{name}.onnx"
        if not isinstance(source, Path):
            onnx.save(source, path)
        made = quantize(
            path,
            data=data,
            recipe=Recipe(precision="int8", safety=SafetyTable(target_sqnr_db=15.0), keep=("head",)),
            output=folder / f"{name}.qdq.onnx",
        )
        assert made.qdq_path is not None
        plain = compared(path, onnx.load(made.qdq_path), other, folder).worst_sqnr_db
        assert plain is not None
        found[name] = path, onnx.load(made.qdq_path), other, plain
    return found


def compared(path: Path, after: onnx.ModelProto, other: Feeds, folder: Path) -> Verification:
    onnx.save(after, folder / "after.onnx")
    return verify(path, folder / "after.onnx", data=other, recipe=Recipe(verify_samples=3))


def spread(names: Sequence[str], count: int) -> list[str]:
    return [names[(2 * k + 1) * len(names) // (2 * count)] for k in range(min(count, len(names)))]


@pytest.mark.parametrize("name", ["detector", "decoder", "real"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_broken_is_among_the_first_three(compiled: Cases, name: str, kind: str, tmp_path: Path) -> None:
    path, quantized, other, plain = compiled[name]
    tried = [(one, after) for one in layers(quantized) if (after := broken(quantized, one, kind)) is not None]
    if not tried:
        assert (name, kind) == ("decoder", "bias")
        return
    for layer in spread([one for one, _ in tried], 1 if name == "real" else 2):
        found = compared(path, dict(tried)[layer], other, tmp_path)
        assert found.worst_sqnr_db is not None
        if found.worst_sqnr_db > plain - 6:
            continue  # it hardly matters, and is nobody's question
        assert len(found.suspects) <= 3
        assert layer in [node for one in found.suspects for node in (one.node, one.layer)], found.begins


def test_where_both_are_close_nobody_is_suspected(tmp_path: Path) -> None:
    first = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    assert trace(first, first, list(Samples(2))).suspects == ()
    second = models.load(chain(tmp_path / "q.onnx", changed(2, 1e-3)))
    assert trace(first, second, list(Samples(2))).suspects == ()


def test_a_layer_that_computes_something_else_is_named_although_the_outputs_are_close() -> None:
    graphs = [
        to_graph(
            model(
                ("MatMul", "x v", "a"),
                ("Add", "a x", "sum"),
                ("MatMul", "sum w", "y"),
                inputs={"x": (4, 8)},
                outputs=("y",),
                weights={"v": factor * WEIGHTS[0], "w": WEIGHTS[1]},
            )
        )
        for factor in (1e-3, 8e-3)
    ]
    first, second = (models.Model(graph, {}, None, 10) for graph in graphs)
    feeds = [{"x": np.random.default_rng(k).normal(size=(4, 8)).astype(np.float32)} for k in range(2)]
    found = trace(first, second, feeds)
    one, *_ = found.suspects  # what reads it may be named too: only a factor is wrong
    assert one.tensor == "a"
    assert one.end_db > 35
    assert [layer.tensor for layer in found.layers if layer.strange] == ["a"]


def test_where_the_error_is_spread_over_many_layers_nobody_has_most_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    exact = [rng.normal(size=(8, 8)).astype(np.float32) / 3 for _ in range(24)]
    noisy = [one + 0.004 * rng.normal(size=(8, 8)).astype(np.float32) for one in exact]
    first, second = (models.load(chain(tmp_path / f"{name}.onnx", one)) for name, one in (("f", exact), ("q", noisy)))
    found = trace(first, second, list(Samples(2)))
    assert found.layers[-1].sqnr_db < 32
    assert max((one.share for one in found.suspects), default=0.0) < 0.5


def test_repairing_the_one_broken_layer_leaves_no_error_and_so_it_is_told(tmp_path: Path) -> None:
    first = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    second = models.load(chain(tmp_path / "q.onnx", changed(2, 0.3)))
    (one,) = trace(first, second, list(Samples(2))).suspects
    assert (one.node, one.layer, one.tensor, one.share) == ("mm2", "mm2", "h2", 1.0)
    assert one.repaired_db == math.inf
    assert one.end_db < 20
    assert told([one]) == (
        f"The error begins at node 'mm2' (MatMul): with this layer exact and all else as it is, '{one.end}' has no "
        f"error instead of {one.end_db:.1f} dB."
    )


def test_where_no_layer_alone_helps_those_that_drift_are_told_with_what_they_leave() -> None:
    first, second = (Suspect(f"n{k}", "Conv", f"t{k}", f"n{k}", 3.0 + k, "y", 1.0, 1.0, 0.0) for k in range(2))
    assert told([first, second]) == (
        "The error begins at node 'n0' (Conv), which leaves 3.0 dB by itself. Next to blame: 'n1'."
    )
    infinite = Suspect("n", "Mul", "t", "n", -math.inf, "y", -math.inf, 30.0, 1.0)
    assert "has 30.0 dB instead of values that are not finite" in told([infinite])


def test_two_broken_layers_are_both_named(tmp_path: Path) -> None:
    weights = [one * (8 if k in (1, 3) else 1) for k, one in enumerate(WEIGHTS)]
    first = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    found = trace(first, models.load(chain(tmp_path / "q.onnx", weights)), list(Samples(2))).suspects
    assert {"mm1", "mm3"} <= {one.node for one in found}
