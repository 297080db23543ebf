"""Arrays in files: `.npz` archives and `.npy`, alone or as a folder with a sample each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from qcompiler.data.files.layout import fits, in_rank, order
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Feeds, Inputs, Shape, fixed_of
from qcompiler.support.npz import Member, members

KINDS = (".npz", ".npy")
UNNAMED = "arr_0"  # what np.savez calls an array that was given no name


def samples(path: Path, inputs: Inputs) -> Callable[[], Iterator[Feeds]]:
    """Begins a walk over the samples of one file.

    Raises:
        DataError: there is no such file; when walked, it is damaged or does not fit.
    """
    if not path.is_file():
        raise DataError(f"there is no file '{path}'; check the spelling of the path.")
    return lambda: _npy_rows(path, inputs) if path.suffix == ".npy" else _rows(path, inputs)


def renamed(path: Path, inputs: Inputs) -> dict[str, str]:
    """By the name of an array the input that it is for, where they differ and somebody chose the name.

    Raises:
        DataError: the archive is damaged.
    """
    if path.suffix != ".npz" or not path.is_file():
        return {}
    found = members(path)
    own = dict(zip(found, _named(found, inputs), strict=True))
    return {name: to for name, to in own.items() if name != to and name != UNNAMED}


def in_folder(files: Iterable[Path], inputs: Inputs) -> Iterator[Feeds]:
    """One feed for each file; a batch axis that alone is missing is added, one of size 1 too many is dropped."""
    for file in files:
        arrays = {_only(inputs, file): mapped(file)} if file.suffix == ".npy" else _whole(file, inputs)
        yield {name: in_rank(array, inputs[name][1]) if name in inputs else array for name, array in arrays.items()}


def mapped(path: Path) -> Array:
    """The array of an `.npy` file, mapped.

    Raises:
        DataError: it is damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            dtype = read(file)[2]
        if not dtype.hasobject:
            return np.asarray(npy.open_memmap(path, "r")) if path.stat().st_size else np.empty(0)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"'{path}' cannot be read as .npy ({error}). Write it again with np.save('{path.name}', array)."
        ) from error
    raise DataError(
        f"'{path}' holds pickled Python objects, which are never loaded because a pickle can run any code. Save it "
        "again with a plain dtype such as np.float32; arrays of different shapes belong into a file each, in a folder."
    )


def _only(inputs: Inputs, path: Path) -> str:
    """The input that an array without a name is for."""
    if len(inputs) == 1:
        return next(iter(inputs))
    listed = ", ".join(f"'{name}'" for name in inputs)
    raise DataError(
        f"'{path}' is one array, and the model takes {len(inputs)}: {listed}. Write an .npz that has one for each: "
        f"np.savez('{path.stem}.npz', {', '.join(f'{name}=...' for name in inputs)})."
    )


def _named(found: Mapping[str, Member], inputs: Inputs) -> dict[str, Member]:
    """The arrays by input: where there is one of each, a name says nothing."""
    if len(found) == len(inputs) == 1:
        return dict(zip(inputs, found.values(), strict=True))
    return dict(found)


def _whole(path: Path, inputs: Inputs) -> Feeds:
    return {name: member.whole() for name, member in _named(members(path), inputs).items()}


def _npy_rows(path: Path, inputs: Inputs) -> Iterator[Feeds]:
    """The samples of the only input: rows of axis 0, or the one sample that the array is."""
    name = _only(inputs, path)
    array, shape = mapped(path), inputs[name][1]
    one = shape is not None and array.ndim == len(shape) - 1 and fits(in_rank(array, shape).shape, shape)
    turned = order(array.shape, shape) is not None and array.shape[0] % _rows_of(shape) != 0  # the check says how
    if one or turned or not array.ndim or shape == ():
        yield {name: in_rank(array, shape)}
        return
    drop = shape is not None and array.ndim == len(shape) + 1
    step = _step(str(path), array.shape[0], {shape[0]} if shape and not drop else set())
    for at in range(0, array.shape[0], step):
        yield {name: array[at] if drop else array[at : at + step]}


def _rows_of(shape: Shape) -> int:
    """How many rows one feed has."""
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1


def _rows(path: Path, inputs: Inputs) -> Iterator[Feeds]:
    """One feed for each sample of an archive: rows of axis 0, in the number that fixed inputs ask for.

    An array without axes is the same in every feed, and so is one that is a constant of the model now. Where the model
    takes an axis less than the array has, the sample axis is dropped.
    """
    found = _named(members(path), inputs)
    known = fixed_of(inputs)
    once = {name for name, member in found.items() if name in known and member.shape == known[name].shape}
    sizes = {name: member.shape[0] for name, member in found.items() if member.shape and name not in once}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise DataError(f"the arrays of '{path}' have different numbers of samples along axis 0: {listed}.")
    ranks = {name: len(shape) for name, (_, shape) in inputs.items() if shape is not None}
    drop = {name for name in sizes if len(found[name].shape) == ranks.get(name, -1) + 1}
    fixed = {shape[0] for name, (_, shape) in inputs.items() if shape and name in sizes and name not in drop}
    count = next(iter(sizes.values()), 0)
    step = _step(str(path), count, set() if drop else fixed)
    constants = {name: found[name].whole() for name in found if name not in sizes}
    streams = {name: found[name].rows(step) for name in sizes}
    for _ in range(0, count, step):
        rows = {name: next(stream) for name, stream in streams.items()}
        yield constants | {name: row[0] if name in drop else row for name, row in rows.items()}


def _step(path: str, count: int, first: Iterable[int | str | None]) -> int:
    """How many rows go into one feed: as many as the first axes of the inputs say, if they are fixed and agree."""
    steps = {size for size in first if isinstance(size, int) and size > 0}
    step = steps.pop() if len(steps) == 1 else 1
    if count % step:
        raise DataError(
            f"'{path}' has {count} samples, but the model takes exactly {step} at a time; make it a multiple of {step}."
        )
    return step
