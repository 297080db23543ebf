from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.data.source import open_source
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.model import Model
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.fixed import fixed, fixed_by, value_of
from tests.kit.rewrite import model, to_graph


def two() -> Model:
    graph = to_graph(model(("Mul", "x n", "y"), inputs={"x": ("batch", 4), "n": (np.float32, (1,))}))
    return Model(graph, {}, None, 8)


def test_the_model_itself_stays_as_it_was() -> None:
    before = two()
    after, told = fixed(before, fixed_by({"n": 2}, {"batch": "3"}))
    assert set(inputs_of(before.graph)) == {"x", "n"}
    assert inputs_of(after.graph) == {"x": (np.dtype(np.float32), (3, 4))}
    assert told == {"x": "batchx4 is now 3x4", "n": "constant: 2.0"}
    assert fixed(before, fixed_by(None, None)) == (before, {})


@pytest.mark.parametrize("name", ["v.npy", "one.npz", "several.npz"])
def test_a_value_out_of_a_file(name: str, tmp_path: Path) -> None:
    value = np.array([2.5], np.float32)
    np.save(tmp_path / "v.npy", value)
    np.savez(tmp_path / "one.npz", anything=value)
    np.savez(tmp_path / "several.npz", x=np.zeros(3), n=value)
    assert value_of("n", str(tmp_path / name)).tolist() == [2.5]


def test_a_file_that_has_no_value(tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", x=np.zeros(3), z=np.zeros(3))
    with pytest.raises(UsageError, match="no array 'n', but x, z"):
        value_of("n", str(tmp_path / "several.npz"))
    with pytest.raises(UsageError, match="cannot be read"):
        value_of("n", str(tmp_path / "missing.npy"))


def feeds(*values: Any) -> list[dict[str, Any]]:
    return [
        {"x": np.ones((2, 4), np.float32), **({} if n is None else {"n": np.asarray(n, np.float32)})} for n in values
    ]


def test_data_may_go_on_giving_the_value() -> None:
    inputs = inputs_of(fixed(two(), fixed_by({"n": 2}, None))[0].graph)
    assert [sorted(feed) for feed in open_source(feeds([2], None, 2), inputs)] == [["x"]] * 3


def test_data_that_gives_another_value_is_refused() -> None:
    inputs = inputs_of(fixed(two(), fixed_by({"n": 2}, None))[0].graph)
    with pytest.raises(DataError, match=r"sample 1 .*: input 'n' is 3\.0, and --fix-input made it 2\.0"):
        list(open_source(feeds([2], [3]), inputs))


@pytest.mark.parametrize("rows", [1, 5])
def test_an_archive_has_the_value_once_or_for_each_sample(rows: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((5, 4), np.float32), n=np.full(rows, 2, np.float32))
    inputs = inputs_of(fixed(two(), fixed_by({"n": 2}, None))[0].graph)
    assert len(list(open_source(str(tmp_path / "d.npz"), inputs))) == 5


@pytest.mark.parametrize("content", [b"PK\x03\x04 and no more", b"", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "value.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        value_of("x", str(tmp_path / "value.npz"))


def test_objects_in_an_archive_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "value.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read"):
        value_of("x", str(tmp_path / "value.npz"))
