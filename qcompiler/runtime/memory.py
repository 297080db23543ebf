"""Memory of sessions: an arena that several share, and what is given back to the system."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import model as models

if TYPE_CHECKING:
    from numpy.typing import NDArray


def return_freed_memory() -> None:
    """Gives what closed sessions have freed back to the system; glibc keeps it for itself otherwise."""
    gc.collect()
    if pool.cache_info().currsize:
        pool().shrink()
    trim()


def trim() -> None:
    """Gives what is free already back to the system: milliseconds, as nothing is looked for."""
    if not sys.platform.startswith("linux"):
        return
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if malloc_trim is not None:
        malloc_trim(0)


class _Pool:
    """The memory that pooled sessions share: an arena of ONNX Runtime's that belongs to no session."""

    def __init__(self) -> None:
        import onnxruntime as ort

        cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(cpu, ort.OrtArenaCfg({"arena_extend_strategy": 1}))  # as much as is asked for
        x, y = (gs.Variable(name, np.float32, [1]) for name in "xy")
        proto, _ = models.to_proto(gs.Graph([gs.Node("Identity", "same", {}, [x], [y])], [x], [y], opset=13))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        take_from_pool(options)
        self._smallest = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._run()  # an arena never gives its first piece back, so that is to be a small one

    def shrink(self) -> None:
        """Gives all that no session uses back to the system."""
        self._run(shrinking())

    def _run(self, options: Any = None) -> None:
        self._smallest.run(None, {"x": np.zeros(1, np.float32)}, options)


def shrinking() -> Any:
    """Options of a run behind which the arena gives back what it does not use."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@lru_cache(maxsize=1)
def pool() -> _Pool:
    """The one arena of this process, made at first use."""
    return _Pool()


def take_from_pool(options: Any) -> None:
    """Lets a session take its activations from the pool, each by itself: a planned block is too large to be shared."""
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False


@dataclass(frozen=True, eq=False)
class Readable:
    """An array that a session may read where it lies.

    Attributes:
        original: whose memory is not used again while this lives.
        array: the same values, contiguous and aligned.
    """

    original: NDArray[Any]
    array: NDArray[Any]


_READABLE: WeakValueDictionary[tuple[int, tuple[int, ...], str], Readable] = WeakValueDictionary()


def readable(array: NDArray[Any]) -> Readable:
    """The array itself, or a copy of one that is not aligned, which all who hold one of it at that time share.

    Weights stand in a file wherever the bytes before them end, and an address that is no multiple of the size of an
    element is not one that every kernel reads.
    """
    array = np.ascontiguousarray(array)
    if array.flags.aligned:
        return Readable(array, array)
    key = array.ctypes.data, array.shape, array.dtype.str
    found = _READABLE.get(key)
    if found is None:
        found = _READABLE[key] = Readable(array, np.require(array, requirements=("C", "A")))
        release_pages([array])
    return found


def release_pages(arrays: Iterable[NDArray[Any]]) -> None:
    """Tells the system that the pages of memory-mapped arrays are not needed now; they come back when read."""
    seen: set[int] = set()
    for array in arrays:
        mapped = _mapping(array)
        if mapped is None or id(mapped) in seen or not hasattr(mapped, "madvise"):
            continue
        seen.add(id(mapped))
        mapped.madvise(mmap.MADV_DONTNEED)


def _mapping(array: Any) -> mmap.mmap | None:
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        if isinstance(array, memoryview):
            array = array.obj
            continue
        array = getattr(array, "base", None)
    return None
