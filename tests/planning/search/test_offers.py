"""Formats and ranges to choose from, and what came quantized meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrators.auto import AUTO_RANGES, FP8_RANGES
from qcompiler.plan import Candidate
from qcompiler.planning.search.offers import given_scales, offered_uses, pin
from qcompiler.planning.simulation.simulator import Use
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, Target, parse_target

RNG = np.random.default_rng(0)
HISTOGRAMS = {name: Histogram.of(RNG.standard_normal(4096).astype(np.float32)) for name in ("x", "r")}
FREE = {name: [Candidate(name.upper(), "MatMul", name, "w", 1)] for name in HISTOGRAMS}
SCALES = np.full(4, 0.1, np.float32)
BOTH = (DType.INT8, DType.FP8)
ADA = parse_target("tensorrt-rtx:sm89")


def uses(calibrator: str, *, groups: dict[str, list[Candidate]] = FREE, target: Target = ADA) -> dict[str, list[Use]]:
    return offered_uses(BOTH, calibrator, target, groups, HISTOGRAMS)[0]


def test_auto_offers_every_range_of_every_format() -> None:
    found, spelled = offered_uses(BOTH, "auto", ADA, FREE, HISTOGRAMS)
    for name in HISTOGRAMS:
        assert [one.dtype for one in found[name]] == [DType.INT8] * len(AUTO_RANGES) + [DType.FP8] * len(FP8_RANGES)
        assert set(spelled[name]) == set(found[name])
        largest = Use(DType.INT8, pytest.approx(float(HISTOGRAMS[name].amax)))  # type: ignore[arg-type]
        assert largest in found[name]


def test_a_named_calibrator_offers_its_own_range_alone() -> None:
    found, spelled = offered_uses((DType.INT8,), "minmax", ADA, FREE, HISTOGRAMS)
    for name, histogram in HISTOGRAMS.items():
        (one,) = found[name]
        assert one == Use(DType.INT8, float(histogram.amax))
        assert spelled[name] == {one: "minmax"}


def test_gpus_that_lack_fp8_are_not_offered_it_beside_int8() -> None:
    found = uses("minmax", target=parse_target("tensorrt-rtx:sm86,sm89"))
    assert {one.dtype for offers in found.values() for one in offers} == {DType.INT8}


def test_what_came_quantized_stays_int8_and_the_rest_is_free() -> None:
    came = {"x": [Candidate("X", "MatMul", "x", "w", 1, scales=SCALES)], "r": FREE["r"]}
    found = uses("minmax", groups=came)
    assert [one.dtype for one in found["x"]] == [DType.INT8]
    assert [one.dtype for one in found["r"]] == [DType.INT8, DType.FP8]


def test_what_came_quantized_is_int8_even_where_only_fp8_is_asked_for() -> None:
    came = {"x": [Candidate("X", "MatMul", "x", "w", 1, amax=2.0)], "r": FREE["r"]}
    found, spelled = offered_uses((DType.FP8,), "minmax", ADA, came, HISTOGRAMS)
    assert found["x"] == [Use(DType.INT8, 2.0)]
    assert spelled["x"] == {Use(DType.INT8, 2.0): "given"}
    assert [one.dtype for one in found["r"]] == [DType.FP8]


def test_the_range_of_a_pair_is_the_only_one_left() -> None:
    ranges, spelled = {"x": [1.0, 2.0], "r": [3.0]}, {"x": ["mse", "minmax"], "r": ["mse"]}
    pin(ranges, spelled, {"x": [Candidate("X", "MatMul", "x", "w", 1, amax=5.0)], "r": FREE["r"]})
    assert ranges == {"x": [5.0], "r": [3.0]}
    assert spelled == {"x": ["given"], "r": ["mse"]}


@pytest.mark.parametrize(("per_channel", "names"), [(True, ["A", "B"]), (False, ["B"])])
def test_scales_that_came_are_kept_where_their_number_is_what_is_asked_for(per_channel: bool, names: list[str]) -> None:
    found = [
        Candidate("A", "MatMul", "x", "w", 1, scales=SCALES),
        Candidate("B", "MatMul", "x", "v", None, scales=np.full((), 0.2, np.float32)),
        Candidate("C", "MatMul", "x", "u", 1),
    ]
    assert list(given_scales(found, per_channel=per_channel)) == names


def test_where_other_samples_were_louder_there_is_room_for_them_and_as_much_again() -> None:
    found, spelled = offered_uses((DType.INT8,), "auto", ADA, FREE, HISTOGRAMS, {"x": 1.5, "r": 0.8})
    largest = {name: float(histogram.amax) for name, histogram in HISTOGRAMS.items()}
    assert [one.amax for one in found["x"][len(AUTO_RANGES) :]] == pytest.approx(
        [largest["x"] * 1.5, largest["x"] * 2.25]
    )
    assert [one.amax for one in found["r"][len(AUTO_RANGES) :]] == [largest["r"]] * 2  # ranges of a plan stand in a row
    assert spelled["x"][found["x"][-1]] == "headroom{times=2.25}"


@pytest.mark.parametrize(("calibrator", "louder"), [("auto", {"x": 1.04, "r": 0.9}), ("minmax", {"x": 3.0})])
def test_no_room_is_offered_where_none_is_needed_or_the_user_chose(calibrator: str, louder: dict[str, float]) -> None:
    assert offered_uses((DType.INT8,), calibrator, ADA, FREE, HISTOGRAMS, louder) == offered_uses(
        (DType.INT8,), calibrator, ADA, FREE, HISTOGRAMS
    )


def test_a_range_that_was_given_is_the_only_one_in_every_format() -> None:
    groups = {"x": [Candidate("X", "MatMul", "x", "w", 1, known=2.0)], "r": FREE["r"]}
    found, spelled = offered_uses(BOTH, "auto", ADA, groups, HISTOGRAMS)
    assert found["x"] == [Use(DType.INT8, 2.0), Use(DType.FP8, 2.0)]
    assert set(spelled["x"].values()) == {"given"}
    assert len(found["r"]) == len(AUTO_RANGES) + len(FP8_RANGES)
