"""The samples that a child process reads and the answer it leaves behind."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children.order import Order

Feeds = dict[str, np.ndarray[Any, np.dtype[Any]]]


class Samples:
    """Feeds read from disk one by one, so that the set itself is in nobody's memory."""

    def __init__(self, folder: Path, count: int) -> None:
        """The first `count` files of `folder`."""
        self.files = sorted(folder.glob("*.npz"))[:count]
        if len(self.files) < count:
            raise ValueError(f"{folder} has {len(self.files)} samples; {count} were asked for")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Feeds:
        with np.load(self.files[index], allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def __iter__(self) -> Iterator[Feeds]:
        return (self[index] for index in range(len(self)))


def reader(samples: Samples, base: type) -> Any:
    """The samples as the `CalibrationDataReader` (`base`) of onnxruntime, which Model Optimizer takes as well."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._stream: Iterator[Feeds] = iter(samples)

        def __len__(self) -> int:
            return len(samples)

        def set_range(self, start_index: int, end_index: int) -> None:
            """The histogram calibrators of newer onnxruntime ask for stretches."""
            self._stream = (samples[index] for index in range(start_index, min(end_index, len(samples))))

        def get_next(self) -> Feeds | None:
            return next(self._stream, None)

        def get_first(self) -> Feeds:
            return samples[0]

        def rewind(self) -> None:
            self._stream = iter(samples)

    return Reader()


def perform(packages: tuple[str, ...], load: Callable[[], object], work: Callable[[Order, Samples], str]) -> int:
    """The main function of a child: `python -m benchmarks.children.NAME [ORDER.json]`.

    Without an order it only imports and prints the versions of `packages`, which also warms the disk cache up.

    Args:
        packages: Distributions whose versions belong into the answer.
        load: Imports everything that `work` needs; its time is not in `work_s`.
        work: Does the job and returns a remark, or "".

    Returns:
        The exit code: 3 where the quantizer failed; why is in the answer.
    """
    load()
    versions = {name: version(name) for name in packages}
    if len(sys.argv) < 2:
        print(json.dumps(versions))
        return 0
    order = Order.read(Path(sys.argv[1]))
    answer: dict[str, Any] = {"versions": versions, "error": None, "remark": ""}
    started = time.perf_counter()
    try:
        answer["remark"] = work(order, Samples(order.samples, order.count))
    except Exception as error:  # quantizers raise whatever they like; the answer carries it into the table
        traceback.print_exc()
        answer["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    answer["work_s"] = time.perf_counter() - started
    order.answer.write_text(json.dumps(answer), encoding="utf8")
    return 3 if answer["error"] else 0
