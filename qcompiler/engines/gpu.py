"""What both TensorRT back-ends need of the machine to run an engine: is there a driver, a GPU, and which one."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qcompiler.engines.base import Runner
from qcompiler.errors import DataError, EngineError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def capability() -> str | None:
    """The compute capability of the first GPU, such as `sm89`; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device):
        return None
    return f"sm{major.value}{minor.value}"


def require_gpu(what: str) -> str:
    """The compute capability of the first GPU.

    Raises:
        EngineError: there is none.
    """
    found = capability()
    if found is None:
        raise EngineError(
            f"{what} needs an NVIDIA GPU and its driver, and there is none here: do this on a machine with one, "
            "or verify the .qdq.onnx beside the engine instead"
        )
    return found


def read_plan(path: Path) -> bytes:
    """The bytes of an engine file.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read the engine '{path}': {error.strerror or error}; build it first") from error


def check_feeds(feeds: Mapping[str, np.ndarray], inputs: list[str]) -> None:
    """Compares names.

    Raises:
        DataError: an input is missing or unknown.
    """
    for name in inputs:
        if name not in feeds:
            raise DataError(f"input '{name}' is missing from the feed: it has {', '.join(feeds) or 'nothing'}")
    for name in feeds:
        if name not in inputs:
            raise DataError(f"the engine has no input '{name}': its inputs are {', '.join(inputs)}")


def fitting(shapes: Mapping[str, tuple[int, ...]], profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]) -> int:
    """The optimization profile that is meant for these shapes: of those that take them, the one nearest to its usual.

    Args:
        shapes: of each input.
        profiles: (smallest, usual, largest) of each input, for each profile.

    Returns:
        Its index; 0 where none takes them, so that the library says what is wrong.
    """

    def distance(profile: Mapping[str, Sequence[Sequence[int]]]) -> float:
        total = 0.0
        for name, shape in shapes.items():
            low, usual, high = profile[name]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=False)):
                return float("inf")
            total += sum(abs(size - opt) / max(top, 1) for size, opt, top in zip(shape, usual, high, strict=False))
        return total

    found = [distance(one) for one in profiles]
    return found.index(min(found)) if found else 0


class PlanRunner(Runner):
    """Runs a TensorRT-RTX plan on the first GPU, one inference at a time.

    Memory and streams come from polygraphy's CUDA wrapper; the libraries' own objects are the same in both modules.
    """

    def __init__(self, module: str, path: Path, remedy: str) -> None:
        """Loads the plan.

        Raises:
            EngineError: no GPU, no library, or the library does not take the plan.
        """
        where = require_gpu(f"running '{path}'")
        try:
            self._trt: Any = importlib.import_module(module)
            from polygraphy import cuda
        except (ImportError, OSError) as error:
            raise EngineError(f"'{module}' is not installed here ({error}): run {remedy}") from error
        self._cuda: Any = cuda
        self._path = path
        self._runtime: Any = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine: Any = self._runtime.deserialize_cuda_engine(read_plan(path))
        if self._engine is None:
            raise EngineError(
                f"{module} {self._trt.__version__} on {where} does not take '{path}': build it for this GPU and with "
                "this version of the library"
            )
        self._context: Any = self._engine.create_execution_context()
        self._stream: Any = cuda.Stream()
        self._buffers: dict[str, Any] = {}
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        reads = {name: self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT for name in names}
        self._inputs = [name for name in names if reads[name]]
        self._outputs = [name for name in names if not reads[name]]
        self._profiles = [
            {name: self._engine.get_tensor_profile_shape(name, index) for name in self._inputs if self._sized(name)}
            for index in range(self._engine.num_optimization_profiles)
        ]
        self._profile = 0

    @property
    def inputs(self) -> dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]:
        """dtype and shape of each input; None for a size that is free."""
        return {name: self._described(name) for name in self._inputs}

    @property
    def outputs(self) -> dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]:
        """The same of each output."""
        return {name: self._described(name) for name in self._outputs}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Runner.infer`."""
        check_feeds(feeds, self._inputs)
        self._choose_profile(feeds)
        held = [self._feed(name, feeds[name]) for name in self._inputs]
        outputs = {name: self._prepare(name) for name in self._outputs}
        if not self._context.execute_async_v3(self._stream.ptr):
            raise EngineError(f"running '{self._path}' failed: the library returned no reason")
        for name, array in outputs.items():
            if array.nbytes:
                self._buffers[name].copy_to(array, stream=self._stream)
        self._stream.synchronize()
        del held
        return outputs

    def close(self) -> None:
        """See `Runner.close`."""
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers = {}
        if self._stream is not None:
            self._stream.free()
        self._stream = self._context = self._engine = self._runtime = None

    def _choose_profile(self, feeds: Mapping[str, np.ndarray]) -> None:
        wanted = fitting({name: feeds[name].shape for name in self._profiles[0]}, self._profiles)
        if wanted != self._profile and not self._context.set_optimization_profile_async(wanted, self._stream.ptr):
            raise EngineError(f"'{self._path}' cannot change to its optimization profile {wanted}")
        self._profile = wanted

    def _sized(self, name: str) -> bool:
        return any(size < 0 for size in self._engine.get_tensor_shape(name))

    def _described(self, name: str) -> tuple[np.dtype[Any], tuple[int | None, ...]]:
        shape = self._engine.get_tensor_shape(name)
        return self._dtype(name), tuple(None if size < 0 else int(size) for size in shape)

    def _feed(self, name: str, given: np.ndarray) -> np.ndarray:
        array = np.ascontiguousarray(given)
        want = self._dtype(name)
        if array.dtype != want:
            raise DataError(f"input '{name}' must be {want}, but the feed has {array.dtype}")
        on_host = self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST
        if not self._context.set_input_shape(name, array.shape):
            raise DataError(f"input '{name}' of shape {list(array.shape)} is outside of the optimization profile")
        if on_host:
            self._context.set_tensor_address(name, array.ctypes.data)
            return array
        buffer = self._buffer(name, array.shape, array.dtype)
        if array.nbytes:
            buffer.copy_from(array, stream=self._stream)
        self._context.set_tensor_address(name, buffer.ptr)
        return array

    def _prepare(self, name: str) -> np.ndarray:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(f"output '{name}' has a shape that depends on the data, which this runner cannot hold")
        array = np.empty(shape, self._dtype(name))
        self._context.set_tensor_address(name, self._buffer(name, shape, array.dtype).ptr)
        return array

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        size = (int(np.prod(shape)) * np.dtype(dtype).itemsize,)
        if name not in self._buffers:
            self._buffers[name] = self._cuda.DeviceArray.raw((max(size[0], 1),))  # an address, also for an empty cache
        self._buffers[name].resize(size)  # exact, for copies take the buffer's size; it reallocates only to grow
        return self._buffers[name]

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        own: Any = {"BF16": ml_dtypes.bfloat16, "FP8": ml_dtypes.float8_e4m3fn}.get(kind.name)
        try:
            found: np.dtype[Any] = np.dtype(own or self._trt.nptype(kind))
        except TypeError as error:
            raise EngineError(f"tensor '{name}' has type {kind.name}, which numpy cannot hold") from error
        return found
