"""Writes calibration samples of one model as files: `... write_samples MODEL_FOLDER OUT COUNT`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.children.common import Feeds
from benchmarks.children.limit import session
from benchmarks.children.loader import Loader, open_loader


def single(feeds: Feeds, free: Mapping[str, bool]) -> Iterator[Feeds]:
    """The rows of a batch as feeds of batch 1.

    Args:
        feeds: One feed.
        free: By input, whether the model leaves axis 0 open. A batch is split where every input leaves it open and
            all arrays have the same size there; else it stays as it is.
    """
    sizes = {array.shape[:1] for array in feeds.values()}
    if len(sizes) != 1 or sizes == {()} or not all(free[name] for name in feeds):
        yield feeds
        return
    for row in range(next(iter(sizes))[0]):
        yield {name: array[row : row + 1] for name, array in feeds.items()}


def free_axes(inputs: Iterable[tuple[str, Sequence[int | str | None]]]) -> dict[str, bool]:
    """By input, whether axis 0 is open and has the same name everywhere."""
    firsts = {name: shape[0] if shape else 0 for name, shape in inputs}
    return {name: not isinstance(first, int) and len(set(firsts.values())) == 1 for name, first in firsts.items()}


def stream(loader: Loader, count: int, free: Mapping[str, bool]) -> Iterator[Feeds]:
    """`count` feeds; the loader is asked for one batch first to see how many it takes."""
    rows = sum(1 for _ in single(next(iter(loader.calibration_feeds(1))), free))
    batches = loader.calibration_feeds(-(-count // rows))
    return islice((row for feeds in batches for row in single(feeds, free)), count)


def main(folder: Path, out: Path, count: int) -> int:
    """Writes 00000.npz, 00001.npz, ... into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    inputs = session(str(folder / "model.onnx")).get_inputs()
    free = free_axes((one.name, one.shape) for one in inputs)
    written = 0
    for feeds in stream(open_loader(folder), count, free):
        np.savez(out / f"{written:05d}.npz", **feeds)  # type: ignore[arg-type]  # savez has a keyword of its own
        written += 1
    if written < count:
        sys.stderr.write(f"{folder.name} has {written} samples; {count} were asked for\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
