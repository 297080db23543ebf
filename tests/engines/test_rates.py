"""Rates of GPUs: each with a source, and the roofline that follows from them."""

from __future__ import annotations

import math

import pytest

from qcompiler.engines.rates import EVERY, PORTABLE, Gpu, Kernel, gpus, gpus_of
from qcompiler.errors import UsageError
from qcompiler.target import FIRST_FP8_SM, RTX_SMS, DType, Target, parse_target


def test_every_gpu_has_a_source_and_says_how_sure_it_is() -> None:
    known = gpus()
    assert {*EVERY, *RTX_SMS, "sm90", "sm100"} <= known.keys()
    for gpu in known.values():
        assert isinstance(gpu, Gpu)
        assert gpu.source
        assert gpu.sure in ("verified", "single", "derived")
        assert (DType.FP8 in gpu.tops) == (int(gpu.sm[2:]) >= FIRST_FP8_SM)
        assert gpu.gbps > 100
        assert 0 < gpu.tensor <= 1
        assert 0 < gpu.memory <= 1


def test_a_target_without_gpus_is_costed_as_the_portable_one() -> None:
    assert [gpu.sm for gpu in gpus_of(parse_target("tensorrt-rtx"))] == [PORTABLE]
    with pytest.raises(UsageError, match="sm70"):
        gpus_of(Target("tensorrt", ("sm70",)))


def test_large_products_are_bound_by_the_rate_of_their_format() -> None:
    ada = gpus()["sm89"]
    times = [Kernel(10**12, dtype, 1e6).seconds(ada) for dtype in (DType.INT8, DType.FP8, DType.FP16)]
    assert times[1] / times[0] == pytest.approx(2, rel=1e-3)
    assert times[2] / times[0] == pytest.approx(4, rel=1e-3)
    slow = Kernel(1, DType.INT8, 1e9)
    assert slow.seconds(ada) == pytest.approx(1e9 / (1008e9 * ada.memory) + ada.kernel_us * 1e-6)


def test_a_kernel_in_a_type_that_a_gpu_lacks_never_ends() -> None:
    assert math.isinf(Kernel(1, DType.FP8, 0.0).seconds(gpus()["sm86"]))
    assert Kernel(0, DType.FP8, 0.0).seconds(gpus()["sm86"]) == pytest.approx(gpus()["sm86"].kernel_us * 1e-6)
