"""Archives are read row by row: mapped or decompressed, and never unpickled."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.errors import DataError
from qcompiler.support import npz

Array = np.ndarray[Any, Any]
write: Callable[..., None] = np.savez
pack: Callable[..., None] = np.savez_compressed


def in_npz(folder: Path, savez: Callable[..., None] = write) -> Path:
    savez(folder / "set.npz", x=np.arange(20, dtype=np.float32).reshape(5, 4), n=np.arange(5))
    return folder / "set.npz"


def test_an_uncompressed_npz_is_mapped_and_a_compressed_one_is_streamed(tmp_path: Path) -> None:
    stored = npz.members(in_npz(tmp_path))["x"]
    base: Any = stored.whole()
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    packed = npz.members(in_npz(tmp_path, pack))["x"]
    assert packed.mapped is None
    assert [rows.shape for rows in packed.rows(2)] == [(2, 4), (2, 4), (1, 4)]


TYPES: list[Any] = [np.float32, np.int8, np.bool_, "U3"]


@given(
    array=st.sampled_from(TYPES).flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=4, max_side=5))),
    fortran=st.booleans(),
    compressed=st.booleans(),
    step=st.integers(1, 6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_an_archive_are_the_array(
    array: Array, fortran: bool, compressed: bool, step: int, tmp_path: Path
) -> None:
    path = tmp_path / f"{random.getrandbits(64):x}.npz"  # a new one each time: the one before may still be mapped
    (pack if compressed else write)(path, a=np.zeros(3), näme=np.asfortranarray(array) if fortran else array)
    member = npz.members(path)["näme"]
    np.testing.assert_array_equal(np.concatenate(list(member.rows(step))), array, strict=True)
    np.testing.assert_array_equal(member.whole(), array, strict=True)


@pytest.mark.parametrize("savez", [write, pack])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (0, 4)])
def test_arrays_without_rows_or_axes_are_read_whole(shape: tuple[int, ...], savez: Any, tmp_path: Path) -> None:
    values = np.full(shape, 7, np.int16)
    savez(tmp_path / "a.npz", a=values)
    np.testing.assert_array_equal(npz.members(tmp_path / "a.npz")["a"].whole(), values, strict=True)


def test_other_files_in_an_archive_are_no_arrays(tmp_path: Path) -> None:
    path = in_npz(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "not an array")
    assert list(npz.members(path)) == ["x", "n"]


def test_python_objects_are_refused_by_their_header_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", good=np.ones(2), bad=np.array([{}, None], object))
    with pytest.raises(DataError, match="array 'bad' of .* holds pickled Python objects, which are never loaded"):
        npz.members(tmp_path / "a.npz")


@pytest.mark.parametrize("savez", [write, pack])
def test_an_archive_that_is_cut_short_is_refused_at_every_length(savez: Any, tmp_path: Path) -> None:
    content = in_npz(tmp_path, savez).read_bytes()
    for length in range(0, len(content) - 1, 37):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.npz' cannot be read as \.npz"):
            npz.members(tmp_path / "cut.npz")


def test_a_damaged_row_is_refused_when_it_is_reached(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (400, 100)).astype(np.uint8)
    pack(tmp_path / "a.npz", a=values)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[20_000:20_064] = bytes(64)
    (tmp_path / "a.npz").write_bytes(content)
    rows = npz.members(tmp_path / "a.npz")["a"].rows(50)
    np.testing.assert_array_equal(next(rows), values[:50])
    with pytest.raises(DataError, match="cannot be read as"):
        list(rows)
