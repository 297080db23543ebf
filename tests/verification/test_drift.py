"""Where a quantized graph leaves its float original: the first layer that drifts, and what is not compared."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.verification import compare
from qcompiler.verification.compare import verify
from qcompiler.verification.drift import compare_layers
from qcompiler.verification.taps import energies
from tests.kit.verification.chain import WEIGHTS, Samples, chain, changed


def test_the_first_drifting_layer_is_the_one_that_was_changed(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(2, 0.2)), Samples())
    assert [layer.tensor for layer in found.layers] == [f"h{k}" for k in range(5)]
    first = found.first_drift
    assert first is not None
    assert (first.node, first.op, first.before_db) == ("mm2", "MatMul", math.inf)
    assert first.sqnr_db < 15
    assert not found.layers[3].drifts or found.layers[3].sqnr_db < 12


def test_a_small_change_is_no_drift(tmp_path: Path) -> None:
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(1, 1e-3)), Samples())
    assert found.first_drift is None
    assert math.isfinite(found.layers[1].sqnr_db)


def test_a_tensor_that_keeps_its_name_but_not_its_meaning_is_not_compared(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(3.0, np.float32), "factor")
    paths = []
    for name, weights in (("f", WEIGHTS), ("folded", [WEIGHTS[0] * 3, *WEIGHTS[1:]])):
        model = onnx.load(chain(tmp_path / f"{name}.onnx", weights))
        if name == "f":
            model.graph.initializer.append(scale)
            model.graph.node.insert(1, helper.make_node("Mul", ["h0", "factor"], ["m0"], name="scale"))
            next(node for node in model.graph.node if node.name == "act0").input[0] = "m0"
        onnx.save(model, tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    first, second = paths
    found = verify(first, second, Samples())
    assert [layer.tensor for layer in found.layers] == ["h1", "h2", "h3", "h4"]
    assert found.first_drift is None
    inner = verify(first, second, Samples(), normal=models.load(second))
    assert [layer.tensor for layer in inner.layers] == [f"h{k}" for k in range(5)]


def test_without_drift_no_layer_is_looked_at(tmp_path: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    assert verify(model, model, Samples(), drift=False).layers == ()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (700, 800)], ids=str)
def test_energies_are_sums_of_squares(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    reference, got = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    wide, other = reference.astype(np.float64), got.astype(np.float64)
    assert energies(reference, got) == pytest.approx([(wide**2).sum(), ((wide - other) ** 2).sum()])


def test_what_the_reference_cannot_hold_counts_nothing_and_what_breaks_counts_all() -> None:
    reference = np.array([1.0, np.inf, 2.0], np.float32)
    assert energies(reference, np.array([1.0, 5.0, 3.0], np.float32)) == pytest.approx([5.0, 1.0])
    assert energies(reference, np.array([np.nan, 5.0, 3.0], np.float32))[1] == math.inf
    assert energies(reference, np.ones(2, np.float32)).tolist() == [0.0, math.inf]


def test_of_many_layers_some_are_taken_evenly_from_first_to_last(tmp_path: Path) -> None:
    model = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    found = compare_layers(model, model, list(Samples(1)), most=3)
    assert [layer.tensor for layer in found] == ["h0", "h2", "h4"]


def test_each_layer_knows_the_worst_before_it(tmp_path: Path) -> None:
    first = models.load(chain(tmp_path / "f.onnx", WEIGHTS))
    second = models.load(chain(tmp_path / "q.onnx", changed(2, 0.01)))
    found = compare_layers(first, second, list(Samples(2)))
    for before, after in itertools.pairwise(found):
        assert after.before_db == before.sqnr_db
    assert all(layer.sqnr_db == math.inf for layer in found[:2])


def test_where_a_part_cannot_be_run_the_outputs_are_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ModelError("node 'x' is odd")

    monkeypatch.setattr(compare, "trace", refused)
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    found = verify(model, model, Samples())
    assert found.layers == ()
    assert found.worst_sqnr_db == math.inf
    assert found.remarks == ("inner tensors were not compared, because of this: node 'x' is odd",)


def test_a_layer_that_errs_as_all_do_does_not_drift(tmp_path: Path) -> None:
    """Each errs by 20 dB, which would be much in a model of INT8."""
    rng = np.random.default_rng(2)
    noisy = [one + 0.03 * rng.normal(size=(8, 8)).astype(np.float32) for one in WEIGHTS]
    found = verify(chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", noisy), Samples())
    assert all(12 < layer.own_db < 26 for layer in found.layers)
    assert found.first_drift is None
