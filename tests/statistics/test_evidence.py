"""What the data lacks: nothing, zeros, one number, too few elements; and tensors that a bias makes of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.runtime.stream import Part
from qcompiler.statistics import evidence
from qcompiler.statistics.evidence import FEWEST, Flags, alike, lack_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import histograms
from tests.kit.rewrite import model

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("values", "rule", "what"),
    [
        (np.zeros(0), evidence.UNSEEN, "held nothing in all 7 calibration samples"),
        (np.zeros(1000), evidence.ZERO, "was 0 in all 7 calibration samples"),
        (np.full(1000, 1e-40), evidence.ZERO, "was 0 in all 7 calibration samples"),
        (np.full(1000, 0.5), evidence.CONSTANT, "was 0.5 throughout in all 7 calibration samples"),
        (
            np.arange(FEWEST - 1.0),
            evidence.FEW,
            "held 254 elements in all 7 calibration samples, fewer than the 255 levels",
        ),
    ],
)
def test_what_is_missing_has_a_rule_and_a_clause(values: NDArray[Any], rule: str, what: str) -> None:
    found = lack_of(Histogram.of(values.astype(np.float32)), 7)
    assert found is not None
    assert found.rule == rule
    assert found.what.startswith(what)


def test_as_many_elements_as_levels_are_enough() -> None:
    assert lack_of(Histogram.of(np.arange(FEWEST, dtype=np.float32)), 1) is None


def test_one_sample_is_called_so() -> None:
    found = lack_of(Histogram.of(np.zeros(300, np.float32)), 1)
    assert found is not None
    assert found.what == "was 0 in the one calibration sample"


CHANNELS = 6


def biased(folder: Path) -> Model:
    """A product of x with a bias, squeezed: what a layer reads where x is zero."""
    weights = {
        "w": RNG.standard_normal((4, CHANNELS)).astype(np.float32),
        "b": RNG.standard_normal(CHANNELS).astype(np.float32),
    }
    proto = model(
        ("MatMul", "x w", "m"),
        ("Add", "m b", "s"),
        ("Tanh", "s", "y"),
        inputs={"x": ("n", "rows", 4)},
        weights=weights,
    )
    onnx.save(proto, folder / "m.onnx")
    return models.load(folder / "m.onnx")


def found_alike(source: Model, feeds: list[Feeds], few: int = 2) -> set[str]:
    return alike(source, {"y": -1}, feeds[:few], histograms(source, ["y"], feeds))


def zeros(rows: int = 50) -> Feeds:
    return {"x": np.zeros((1, rows, 4), np.float32)}


def test_what_a_bias_makes_of_zeros_is_alike_at_every_position(tmp_path: Path) -> None:
    source = biased(tmp_path)
    assert found_alike(source, [zeros()] * 4) == {"y"}
    assert found_alike(source, [zeros(50), zeros(20)]) == {"y"}


def test_one_position_that_differs_is_enough(tmp_path: Path) -> None:
    source, other = biased(tmp_path), zeros()
    other["x"][0, 7] = 0.01
    assert found_alike(source, [zeros(), other]) == set()
    assert found_alike(source, [zeros(), zeros(), {"x": other["x"] * 100}]) == set()  # the extremes tell of the third


def test_a_single_position_tells_nothing(tmp_path: Path) -> None:
    assert found_alike(biased(tmp_path), [zeros(1)]) == set()


def test_truth_values_add_up_over_parts_and_workers() -> None:
    one, other = Flags(["a", "b"]), Flags(["a", "b"])
    one.update(Part(0, {}, {"a": np.array(True), "b": np.array([False])}, last=True))
    other.update(Part(1, {}, {"a": np.array(False)}, last=True))
    one.merge(other)
    assert one.found == {"a": {True, False}, "b": {False}}
