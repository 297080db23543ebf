"""The predicted time of an engine beside that in high precision."""

from __future__ import annotations

import pytest

from qcompiler.engines.prediction import Prediction, predicted_for
from qcompiler.engines.rates import EVERY, Kernel, gpus
from qcompiler.engines.roofline import PricedLaunch, Roofline
from qcompiler.target import DType, parse_target


def engine(*kernels: tuple[int, DType, float], unlisted: int = 0, jumps: bool = False) -> Roofline:
    launches = (PricedLaunch(f"k{i}", (f"n{i}",), Kernel(*one), False) for i, one in enumerate(kernels))
    return Roofline(tuple(launches), unlisted, jumps)


FLOAT = engine((10**9, DType.FP16, 4e6))
FAST = engine((10**9, DType.INT8, 2e6))
SLOW = engine((10**9, DType.INT8, 4e6), (0, DType.FP32, 8e7))
TWO = [gpus()["sm86"], gpus()["sm89"]]


def test_times_are_those_of_both_engines_on_every_gpu() -> None:
    found = Prediction(DType.FP16, FLOAT, FAST, TWO, {"x": (1, 3)}).to_json()
    for gpu in TWO:
        row = found["sms"][gpu.sm]
        assert row["high_us"] == pytest.approx(FLOAT.seconds(gpu) * 1e6, abs=0.01)
        assert row["engine_us"] == pytest.approx(FAST.seconds(gpu) * 1e6, abs=0.01)
    assert found["high"] == {"kernels": 1, "bytes": 4_000_000, "macs": {"fp16": 10**9}, "unsized": 0}
    assert found["shapes"] == {"x": [1, 3]}
    assert found["high_precision"] == "float16"
    assert found["warning"] is None


def test_an_engine_that_is_slower_anywhere_is_warned_of() -> None:
    found = Prediction(DType.FP16, FLOAT, SLOW, TWO)
    assert found.slower
    assert found.ratio == max(SLOW.seconds(gpu) / FLOAT.seconds(gpu) for gpu in TWO)
    assert found.warning is not None
    assert "predicted slower than the same model in float16" in found.warning
    assert "on SM89" in found.warning
    assert "--objective time" in found.warning
    assert "+1 kernels, and 4 MB become 84 MB" in found.warning
    assert not Prediction(DType.FP16, FLOAT, FLOAT, TWO).slower


def test_what_is_left_out_is_said() -> None:
    assert Prediction(DType.FP16, FLOAT, FAST, TWO).leaves_out.startswith("caches")
    odd = engine((1, DType.INT8, 1.0), unlisted=77, jumps=True)
    text = Prediction(DType.FP16, FLOAT, odd, TWO, profiles=2).leaves_out
    for part in ("branches", "77 multiply-accumulates", "profiles but the first"):
        assert part in text


def test_a_portable_engine_is_predicted_where_it_runs() -> None:
    assert [gpu.sm for gpu in predicted_for(parse_target("tensorrt-rtx"), FAST)] == list(EVERY)
    fp8 = engine((1, DType.FP8, 1.0))
    assert [gpu.sm for gpu in predicted_for(parse_target("tensorrt-rtx"), fp8)] == ["sm89", "sm120"]
    assert [gpu.sm for gpu in predicted_for(parse_target("tensorrt-rtx:sm86"), FAST)] == ["sm86"]
