"""Arrays in files: one file with all samples, or a folder with one each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.data.files.arrays import mapped
from qcompiler.data.source import open_source
from qcompiler.errors import DataError
from qcompiler.ir.signature import Inputs
from tests.data.samples import F32, INPUTS, refused, same, write

MODEL: Inputs = {"x": (F32, ("n", 3, 4, 5))}
ROWS = np.arange(6 * 3 * 4 * 5, dtype=np.float32).reshape(6, 3, 4, 5)


def saved(folder: Path, array: Any, name: str = "set.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def test_the_rows_of_an_npy_are_samples(tmp_path: Path) -> None:
    same(list(open_source(saved(tmp_path, ROWS), MODEL)), [{"x": ROWS[i : i + 1]} for i in range(6)])


def test_an_npy_may_be_one_sample_without_its_batch_axis(tmp_path: Path) -> None:
    same(list(open_source(saved(tmp_path, ROWS[2]), MODEL)), [{"x": ROWS[2:3]}])


def test_a_model_without_a_batch_axis_gets_the_rows_of_an_npy_one_by_one(tmp_path: Path) -> None:
    alone: Inputs = {"x": (F32, (3, 4, 5))}
    same(list(open_source(saved(tmp_path, ROWS), alone)), [{"x": row} for row in ROWS])
    same(list(open_source(saved(tmp_path, ROWS[0]), alone)), [{"x": ROWS[0]}])


def test_a_model_that_takes_two_at_a_time_gets_two_rows_of_an_npy(tmp_path: Path) -> None:
    two: Inputs = {"x": (F32, (2, 3, 4, 5))}
    same(list(open_source(saved(tmp_path, ROWS), two)), [{"x": ROWS[i : i + 2]} for i in (0, 2, 4)])
    assert "exactly 2 at a time" in refused(saved(tmp_path, ROWS[:5]), two)


def test_swapped_axes_of_an_npy_are_called_so(tmp_path: Path) -> None:
    for model in (MODEL, {"x": (F32, (2, 3, 4, 5))}):
        assert "x.transpose(0, 3, 1, 2)" in refused(saved(tmp_path, ROWS.transpose(0, 2, 3, 1)), model)
    assert "x.transpose(2, 0, 1)" in refused(saved(tmp_path, ROWS[0].transpose(1, 2, 0)), {"x": (F32, (3, 4, 5))})


def test_an_npy_says_nothing_of_which_of_two_inputs_it_is_for(tmp_path: Path) -> None:
    message = refused(saved(tmp_path, ROWS), INPUTS)
    assert "takes 2: 'x', 'n'" in message
    assert "np.savez('set.npz', x=..., n=...)" in message


def test_a_folder_of_npy_has_a_sample_each_with_or_without_its_batch_axis(tmp_path: Path) -> None:
    saved(tmp_path, ROWS[0], "a10.npy")
    saved(tmp_path, ROWS[1:2], "a9.npy")
    write(tmp_path / "a8.npz", arr_0=ROWS[2])
    same(list(open_source(tmp_path, MODEL)), [{"x": ROWS[2:3]}, {"x": ROWS[1:2]}, {"x": ROWS[0:1]}])


def test_the_name_of_the_only_array_for_the_only_input_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "set.npz", images=ROWS)
    same(list(open_source(tmp_path / "set.npz", MODEL)), [{"x": ROWS[i : i + 1]} for i in range(6)])
    assert open_source(tmp_path / "set.npz", MODEL).details == {"renamed": {"images": "x"}}
    write(tmp_path / "set.npz", arr_0=ROWS)
    assert not open_source(tmp_path / "set.npz", MODEL).details
    write(tmp_path / "set.npz", images=ROWS, labels=np.arange(6))
    assert "has 'images', 'labels', which the model does not take" in refused(tmp_path / "set.npz", MODEL)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\x10\x00short", b"not an array"])
def test_a_damaged_npy_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npy' cannot be read as \.npy"):
        mapped(tmp_path / "bad.npy")


def test_a_pickle_in_an_npy_is_never_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pickled Python objects"):
        mapped(Path(saved(tmp_path, np.array([{}], object))))


def test_an_npy_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refused(str(tmp_path / "none.npy"), MODEL)
