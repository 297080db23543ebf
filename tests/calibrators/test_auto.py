"""Ranges on offer: several for `auto`, its own for any other calibrator, each with the name of where it came from."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler import calibrators
from qcompiler.calibrators.auto import AUTO, AUTO_RANGES, FP8_RANGES, offered
from qcompiler.calibrators.mse import MSE
from qcompiler.errors import UsageError
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType

HEAVY = Histogram.of(np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32))


@pytest.mark.parametrize(("dtype", "texts"), [(DType.INT8, AUTO_RANGES), (DType.FP8, FP8_RANGES)])
def test_auto_offers_what_each_of_its_calibrators_says(dtype: DType, texts: tuple[str, ...]) -> None:
    ranges, spelled = offered(AUTO, {"x": HEAVY, "y": HEAVY}, dtype)
    assert spelled == {name: [str(calibrators.parse(text)) for text in texts] for name in ("x", "y")}
    assert ranges["x"] == [calibrators.parse(text).range(HEAVY) for text in texts]
    assert ranges["y"] == ranges["x"]


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
@pytest.mark.parametrize("text", ["minmax", "percentile{p=99.0}", "entropy"])
def test_any_other_calibrator_offers_its_own_range_alone(text: str, dtype: DType) -> None:
    one = calibrators.parse(text)
    assert offered(text, {"x": HEAVY}, dtype) == ({"x": [one.range(HEAVY)]}, {"x": [str(one)]})


def test_the_least_error_is_that_on_the_grid_of_the_format() -> None:
    for text in ("mse", "mse{format=fp8}"):
        assert offered(text, {"x": HEAVY}, DType.FP8) == ({"x": [MSE("fp8").range(HEAVY)]}, {"x": [str(MSE("fp8"))]})
        assert offered(text, {"x": HEAVY}, DType.INT8)[0] == {"x": [MSE("int8").range(HEAVY)]}
    assert MSE("fp8").range(HEAVY) != MSE("int8").range(HEAVY)


def test_every_name_reads_back_to_the_range_that_it_stands_beside() -> None:
    for dtype in (DType.INT8, DType.FP8):
        ranges, spelled = offered(AUTO, {"x": HEAVY}, dtype)
        assert [calibrators.parse(text).range(HEAVY) for text in spelled["x"]] == ranges["x"]


def test_nothing_is_offered_for_no_tensor_and_an_unknown_calibrator_is_refused() -> None:
    assert offered(AUTO, {}) == ({}, {})
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        offered("entorpy", {"x": HEAVY})
