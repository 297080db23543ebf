"""Statistics by torch are those by numpy, to the bit. Torch's CPU stands for a GPU here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from qcompiler.runtime.gpu.device import Device
from qcompiler.runtime.session import Session
from qcompiler.runtime.stream import Part
from qcompiler.statistics import on_device
from qcompiler.statistics.histogram import Histogram, Histograms
from qcompiler.statistics.outliers import Outliers, Tokens
from tests.kit.rewrite import model

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(11)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


class Lying:
    """Stands for a tensor that a session has left on a device."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        on_device, "held", lambda one: torch.from_numpy(one.array) if isinstance(one, Lying) else np.asarray(one)
    )


def counted(array: NDArray[Any], feed: dict[str, Any]) -> Histogram:
    seen = Histograms(["t"])
    seen.update(Part(0, feed, {"t": array}, last=True))
    return seen.found["t"]


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FLOATS))
def test_buckets_are_those_of_the_histogram(array: NDArray[np.float32]) -> None:
    found = Histogram()
    found.add(*on_device.buckets(torch.from_numpy(array), None, 15, 1 << 16))
    assert found == Histogram.of(array)
    assert found.digest() == Histogram.of(array).digest()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_other_floats_count_as_their_float32_values(dtype: Any) -> None:
    array = (RNG.standard_normal((3, 500)) * 10 ** RNG.uniform(-6, 4, (3, 500))).astype(dtype)
    found = Histogram()
    found.add(*on_device.buckets(torch.from_numpy(array), None, 15, 1 << 16))
    found.add(*on_device.buckets(torch.from_numpy(array[:1]), None, 15, 1 << 16))
    both = Histogram.of(array)
    both.update(array[:1])
    assert found == both


@pytest.mark.usefixtures("lying")
@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (2, 5, 3, 4), (2, 2, 4), (7, 4)])
def test_padding_does_not_count(shape: tuple[int, ...]) -> None:
    array, feed = RNG.standard_normal(shape).astype(np.float32), {"attention_mask": np.array([[1, 1, 0], [1, 0, 1]])}
    on: Any = Lying(array)
    assert counted(on, feed) == counted(array, feed)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [*((one, axis) for one in [(4, 6, 8), (4, 8), (2, 8, 5, 3), (3, 0, 8)] for axis in (1, -1)), ((8,), -1)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_channels_and_tokens_are_the_same(shape: tuple[int, ...], axis: int, masked: bool) -> None:
    array = RNG.standard_normal(shape).astype(np.float32)
    array[array < -1] *= 50
    feed: dict[str, Any] = {"x": array}
    if masked:
        feed["attention_mask"] = np.tri(shape[0], 15 if len(shape) == 4 else 6, 2, np.int64)
    samples = [{"x": array[i : i + 1]} for i in range(shape[0])] if len(shape) > 1 else []
    here, there = Outliers(axis), Outliers(axis)
    here.update(array, Tokens(feed, samples))
    there.update(torch.from_numpy(array), Tokens(feed, samples))
    assert there == here
    assert all(np.array_equal(there.without(fold), here.without(fold)) for fold in range(4))


def test_what_a_session_left_in_its_memory_is_a_tensor_without_a_copy() -> None:
    proto = model(("Neg", "x", "y"), inputs={"x": ("n", 4)}, outputs=("y",))
    left: Any = Session((proto, {}), device=Device("cpu")).run({"x": np.ones((2, 4), np.float32)})["y"]
    tensor = on_device.held(left)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.data_ptr() == left.value.data_ptr()
    assert on_device.counts_with(Device("cpu")) == f"torch {torch.__version__}"


def test_without_a_torch_that_sees_the_gpu_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_device._sees.cache_clear()
    assert on_device.counts_with(Device("cuda")) == "numpy"
    proto = model(("Neg", "x", "y"), inputs={"x": ("n", 4)}, outputs=("y",))
    left: Any = Session((proto, {}), device=Device("cpu")).run({"x": np.ones((2, 4), np.float32)})["y"]
    monkeypatch.setattr(on_device, "_sees", lambda _: False)
    assert isinstance(on_device.held(left), np.ndarray)
