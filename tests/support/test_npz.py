"""Archives are read row by row: mapped or decompressed, and never unpickled."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.support import npz
from tests.kit.samples import Array, in_npz, pack, write


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
