"""What every test shares: no display, repeatable Hypothesis, and a reason wherever a GPU is missing."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.architectures import Exports

os.environ["MPLBACKEND"] = "Agg"
# No deadline: the machine may be busy, and the first call of a compiled loop compiles it.
hypothesis.settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")


@cache
def gpus() -> int:
    """How many GPUs the NVIDIA driver offers; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not gpus():
        pytest.skip("needs an NVIDIA GPU: the driver offers none here")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Tiny decoders, encoders and encoder-decoders of transformers as ONNX: `exports("llama", past=False)`."""
    from tests.architectures import Exports

    return Exports(tmp_path_factory.mktemp("exports"))
