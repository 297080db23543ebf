"""What every test shares: no display, repeatable Hypothesis, a processor a worker, a reason where a GPU is missing."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.kit.architectures import Exports


os.environ["MPLBACKEND"] = "Agg"
os.environ["QCOMPILER_CACHE"] = "off"  # what a test sees was made in that test; those of the cache say where
# No deadline: the machine may be busy, and the first call of a compiled loop compiles it.
hypothesis.settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")


def _stay_on_one_processor(worker: str) -> None:
    """Leaves one processor to worker `gw0`, `gw1`, ... of pytest-xdist and to what it starts.

    The tests' models are tiny. Threads of several workers would only wait for each other: ONNX Runtime's spin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})


if "PYTEST_XDIST_WORKER" in os.environ:
    _stay_on_one_processor(os.environ["PYTEST_XDIST_WORKER"])


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


MANY = 50  # modules
_frozen = 0


def _freeze_what_was_imported() -> None:
    """Modules stay until the end, so garbage collections need not look through them again and again.

    The compiler collects after each long stage. Behind torch and transformers a collection takes a third of a second,
    and a compilation of a tiny model three seconds instead of a quarter.
    """
    global _frozen
    if len(sys.modules) < _frozen + MANY:
        return
    gc.collect()
    gc.freeze()
    _frozen = len(sys.modules)


def pytest_collection_finish() -> None:
    _freeze_what_was_imported()


def pytest_runtest_setup(item: pytest.Item) -> None:
    _freeze_what_was_imported()
    if item.get_closest_marker("gpu") and not gpus():
        pytest.skip("needs an NVIDIA GPU: the driver offers none here")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Tiny decoders, encoders and encoder-decoders of transformers as ONNX: `exports("llama", past=False)`."""
    from tests.kit.architectures import Exports

    return Exports(tmp_path_factory.mktemp("exports"))
