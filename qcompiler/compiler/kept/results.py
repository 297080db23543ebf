"""What stages handed back, by the content of the question, in a folder that compilations share.

The question is the stage, its arguments, and what computes: this package's own files, the libraries, the kind of
processor and how many of them there are. Whatever is wrong with the folder is told once and never ends a compilation:
without it the work is done again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from qcompiler.compiler.base import Done
from qcompiler.compiler.content import digest
from qcompiler.compiler.kept.packing import NotKeptError, held_of, live_of, pack, unpack
from qcompiler.compiler.kept.store import Store
from qcompiler.support.machine import available_processors, version_of

Array = np.ndarray[Any, Any]

_COMPUTING: Final = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "numba", "ml-dtypes")


class Results:
    """Results of stages in a store.

    Args:
        store: where they lie.
        warn: told once, where the store cannot be used.
    """

    def __init__(self, store: Store, warn: Callable[[str], None]) -> None:
        self._store = store
        self._warn = warn
        self._broken = False
        self._damaged = False  # something was: what is written from now on replaces what lies there
        self._arrays: WeakValueDictionary[str, Array] = WeakValueDictionary()

    def get(self, name: str, key: str, inputs: Sequence[object]) -> tuple[Done[Any], float] | None:
        """The result of a stage by its key, and the seconds that it took; None where there is none.

        Args:
            name: of the stage.
            key: of the question.
            inputs: its arguments, whose sources the result goes on with.
        """
        entry = self._entry(name, key)
        try:
            content = self._store.entry(entry)
            if content is None:
                return None
            done, seconds = unpack(content, self._array, live_of(inputs) | held_of(inputs))
        except (NotKeptError, ValueError) as error:
            self._warn(f"what an earlier compilation kept of stage '{name}' is of no use ({error}): it is made again")
            self._store.drop("entries", entry)
            self._damaged = True
            return None
        except OSError as error:
            self._give_up(error)
            return None
        return done, seconds

    def put(self, name: str, key: str, done: Done[Any], seconds: float, inputs: Sequence[object]) -> None:
        """Keeps the result of a stage; one that cannot be written, or not be had again, is not kept.

        Args:
            name: of the stage.
            key: of the question.
            done: what it handed back.
            seconds: what it took.
            inputs: its arguments, as of `get`.
        """
        if self._broken or not live_of((done.value,)).keys() <= live_of(inputs).keys():
            return
        try:
            content = pack((done, seconds), self._keep, held_of(inputs))
            self._store.put_entry(self._entry(name, key), content)
        except NotKeptError:
            return
        except OSError as error:
            self._give_up(error)

    def _entry(self, name: str, key: str) -> str:
        return f"{digest((computing(), name, key))}-{name}"

    def _keep(self, name: str, array: Array) -> None:
        self._store.put_blob(name, array, again=self._damaged and name not in self._arrays)
        if not array.flags.writeable:
            self._arrays[name] = array

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array of the store, the same object as long as somebody has it.

        Raises:
            NotKeptError: it is gone, or damaged.
        """
        known = self._arrays.get(name)
        if known is not None:
            return known
        found = self._store.blob(name)
        if found is None:
            raise NotKeptError("an array is gone")
        array: Array = found.view(dtype).reshape(shape)
        array.flags.writeable = False
        if digest(array) != name:
            self._store.drop("blobs", name)
            raise NotKeptError("an array is damaged")
        self._arrays[name] = array
        return array

    def _give_up(self, error: OSError) -> None:
        """Once is enough: a disk that is full is full for the next stage, too."""
        if not self._broken:
            self._warn(
                f"results cannot be kept in '{self._store.root}': {error.strerror or error}. The compilation goes on "
                "without; choose another folder with QCOMPILER_CACHE, or --no-cache"
            )
        self._broken = True


@cache
def own_files() -> str:
    """What this package is, by its files, as 64 hex digits."""
    home, own = Path(__file__).parents[2], blake2b(digest_size=32)
    for path in sorted(home.rglob("*.py")) + sorted(home.rglob("*.toml")):
        own.update(str(path.relative_to(home)).encode() + b"\0" + path.read_bytes())
    return own.hexdigest()


@cache
def computing() -> str:
    """What results depend on beside the question, as 64 hex digits."""
    libraries = tuple((name, version_of(name)) for name in _COMPUTING)
    processor = (platform.system(), platform.machine(), _processor(), available_processors())
    return digest((own_files(), platform.python_version(), libraries, processor, os.environ.get("OMP_NUM_THREADS")))


def _processor() -> str:
    """Model and abilities of the processor; its machine type where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.split("\t")[0] in ("vendor_id", "model name", "model", "flags"))
