"""A path as data: what lies there decides how it is read; what is no data is called by its name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qcompiler.data.files.opened import UNPREPARED, no_data, open_path
from qcompiler.data.source import Prepared, open_source, prepared
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.signature import Inputs
from qcompiler.recipe.tables import PreprocessTable
from tests.data.files.test_sounds import WAVE, written
from tests.data.samples import F32, refused

MODEL: Inputs = {"x": (F32, ("n", 3, 8, 8))}
PLAIN = PreprocessTable("plain")
CODE = """
import numpy as np
from PIL import Image
from neighbour_of_opened import SIZE

def load(path):
    return np.asarray(Image.open(path).resize((SIZE, SIZE)), np.float32).transpose(2, 0, 1) / 255

def by_name(path):
    return {"x": load(path)[None]}

def words(path):
    return path.read_text()

def breaks(path):
    raise KeyError(path.name)
"""


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Five pictures in two classes."""
    rng = np.random.default_rng(0)
    for index in range(5):
        place = tmp_path / "album" / ("cat", "dog")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 10 + index, 3)).astype(np.uint8)).save(place / f"{index}.png")
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "neighbour_of_opened.py").write_text("SIZE = 8\n")
    return tmp_path / "album"


def feeds(path: Path, table: PreprocessTable, inputs: Inputs = MODEL, **options: Any) -> list[Any]:
    return list(open_source(Prepared(str(path), table), inputs, **options))


def test_pictures_become_feeds_again_and_again_and_the_source_says_how(album: Path) -> None:
    source = open_source(Prepared(str(album), PLAIN), MODEL)
    first, second = list(source), list(source)
    assert [one["x"].shape for one in first] == [(1, 3, 8, 8)] * 5
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(first, second, strict=True))
    assert source.details["files"] == "5 pictures, spread over 2 folders"
    assert source.details["preprocess"] == "stretched to 8x8 (bilinear), RGB, times 0.00392157, NCHW"
    assert source.details["preparation"]["scale"] == 1 / 255


def test_so_many_pictures_are_taken_as_are_asked_for(album: Path) -> None:
    assert len(feeds(album, PLAIN, samples=3)) == 3


def test_a_model_that_takes_two_pictures_at_a_time_gets_two(album: Path) -> None:
    two: Inputs = {"x": (F32, (2, 3, 8, 8))}
    assert [one["x"].shape for one in feeds(album, PLAIN, two)] == [(2, 3, 8, 8)] * 2
    assert len(feeds(album, PLAIN, two, samples=2)) == 2


def test_pictures_that_nothing_says_the_preparation_of_are_refused_with_the_ways(album: Path) -> None:
    message = refused(album, MODEL)
    for word in ("5 pictures", "'x' [n, 3, 8, 8]", "imagenet", "yolo", "clip", "preprocessor_config.json", "function"):
        assert word in message


@pytest.mark.parametrize("name", ["load", "by_name"])
def test_a_function_may_prepare_every_file(album: Path, name: str) -> None:
    found = feeds(album, PreprocessTable(f"{album.parent / 'code.py'}:{name}"))
    assert [one["x"].shape for one in found] == [(1, 3, 8, 8)] * 5


def test_a_function_that_does_not_give_arrays_or_fails_is_named(album: Path) -> None:
    (album.parent / "notes").mkdir()
    (album.parent / "notes" / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"gave a str for '.*a\.txt': it must return an array\."):
        feeds(album.parent / "notes", PreprocessTable(f"{album.parent / 'code.py'}:words"))
    with pytest.raises(DataError, match="failed at sample 0 with KeyError"):
        feeds(album, PreprocessTable(f"{album.parent / 'code.py'}:breaks"))
    with pytest.raises(DataError, match="has no function 'lode', which gets the path of a file"):
        feeds(album, PreprocessTable(f"{album.parent / 'code.py'}:lode"))


def test_sounds_become_feeds(tmp_path: Path) -> None:
    for index in range(3):
        written(tmp_path, WAVE, name=f"{index}.wav")
    waves: Inputs = {"x": (F32, (1, 3))}
    source = open_source(Prepared(str(tmp_path), PreprocessTable(rate=16000)), waves)
    assert len(list(source)) == 6
    assert source.details["preprocess"] == "mono at 16000 Hz, windows of 3 samples, from -1 to 1"
    assert "nothing says at which rate" in refused(tmp_path, waves)


def test_other_files_need_a_function(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    message = refused(tmp_path, MODEL)
    assert "1 other files such as 'a.csv'" in message
    assert "--preprocess file.py:function" in message


def test_arrays_are_prepared_already(tmp_path: Path, album: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match=r"a\.npz' holds arrays, which are fed as they are"):
        open_path(tmp_path / "a.npz", MODEL, PLAIN, None)
    assert prepared(str(tmp_path / "a.npz"), PLAIN, str(album)) == str(tmp_path / "a.npz")
    assert prepared(str(album), PLAIN) == Prepared(str(album), PLAIN)
    assert prepared("random", PLAIN) == "random"
    assert prepared(str(album), UNPREPARED) == str(album)


def test_what_is_no_data_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "calib.cache").write_text(f"TRT-8601-EntropyCalibration2\nx: {struct.pack('>f', 1.0).hex()}\n")
    message = refused(str(tmp_path / "calib.cache"), MODEL)
    assert "is a calibration table of TensorRT, which has ranges and no samples: give it as --ranges" in message
    assert "is a model and no data" in str(no_data(tmp_path / "m.onnx", "forms"))
    assert "is not something that can be read as data; give forms" in str(no_data(tmp_path / "m.txt", "forms"))


def test_a_function_that_gives_samples_prepares_them_itself() -> None:
    with pytest.raises(UsageError, match="is a function, which prepares by itself"):
        open_source(Prepared("code.py:samples", PLAIN), MODEL)
