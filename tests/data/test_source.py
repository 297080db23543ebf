"""Every kind of source gives the same feeds, again and again; what does not fit is refused by sample and input."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.data.batches import BatchAxes
from qcompiler.data.source import Source, open_source
from qcompiler.errors import DataError, QCompilerError, UsageError
from qcompiler.ir.signature import Feeds, Inputs
from tests.data.samples import F32, I64, INPUTS, feeds, in_npz, pack, refused, same, stacked, write

AXES = BatchAxes({"x": 0, "n": 0})


def in_folder(folder: Path) -> Path:
    (folder / "set").mkdir()
    for index, feed in enumerate(feeds()):
        write(folder / "set" / f"s{index + 7}.npz", **feed)  # 7 8 9 10 11: natural order differs from text order
    return folder / "set"


CODE = """
import numpy as np
from dataclasses import dataclass

@dataclass
class Sample:
    index: int

def samples():
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    for i in range(5):
        yield {"x": x[i : i + 1], "n": np.array([Sample(i).index])}

def broken():
    yield from list(samples())[:2]
    raise KeyError("label")

def breaks_at_once():
    raise OSError("no camera")

def wants(argument):
    return []

def one_dict():
    return next(samples())

def nothing():
    return None

number = 3
"""


def in_code(folder: Path) -> str:
    (folder / "load.py").write_text(CODE)
    return f"{folder / 'load.py'}:samples"


def in_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "pkg_of_test").mkdir()
    (folder / "pkg_of_test" / "__init__.py").write_text("")
    (folder / "pkg_of_test" / "load.py").write_text(CODE)
    monkeypatch.chdir(folder)
    return "pkg_of_test.load:samples"


SOURCES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "npz": lambda folder, _: in_npz(folder),
    "compressed npz": lambda folder, _: in_npz(folder, pack),
    "folder": lambda folder, _: str(in_folder(folder)),
    "file.py": lambda folder, _: in_code(folder),
    "package": in_package,
    "list": lambda *_: feeds(),
    "callable": lambda *_: feeds,
    "generator function": lambda *_: lambda: (feed for feed in feeds()),
}


@pytest.fixture(params=SOURCES)
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules), list(sys.path)
    yield SOURCES[request.param](tmp_path, monkeypatch)
    assert sys.path == before[1]
    for name in set(sys.modules) - before[0]:
        if name.startswith(("pkg_of_test", "qcompiler_data_")):
            del sys.modules[name]


def test_every_source_gives_its_feeds_again_and_again(data: Any) -> None:
    source = open_source(data, INPUTS)
    for _ in range(3):
        same(list(source), feeds())
    assert not source.random
    assert source.name


def test_samples_takes_the_first(data: Any) -> None:
    same(list(open_source(data, INPUTS, samples=2)), feeds(2))
    same(list(open_source(data, INPUTS, samples=99)), feeds())


def test_batches_are_joined_and_the_last_one_may_be_short(data: Any) -> None:
    found = list(open_source(data, INPUTS, batch=2).along(AXES))
    assert [len(one["x"]) for one in found] == [2, 2, 1]
    same([{name: np.concatenate([one[name] for one in found]) for name in INPUTS}], [stacked()])
    assert [len(one["x"]) for one in open_source(data, INPUTS, samples=3, batch=2).along(AXES)] == [2, 1]


def test_a_source_can_be_left_early_and_begun_again(data: Any) -> None:
    source = open_source(data, INPUTS)
    same([next(iter(source))], feeds(1))
    same(list(source), feeds())


def test_an_npz_follows_what_the_model_takes(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    images = np.arange(48, dtype=np.float32).reshape(6, 2, 4)
    write(path, image=images, rate=np.array(16000))
    rate: Inputs = {"rate": (I64, ())}
    by_two = list(open_source(path, {"image": (F32, (2, 2, 4)), **rate}))
    assert [one["image"].shape for one in by_two] == [(2, 2, 4)] * 3
    single = list(open_source(path, {"image": (F32, (2, 4)), **rate}))
    assert [one["image"].shape for one in single] == [(2, 4)] * 6
    np.testing.assert_array_equal(np.stack([one["image"] for one in single]), images)
    assert all(one["rate"] == 16000 for one in single)
    assert "6 samples, but the model takes exactly 4" in refused(path, {"image": (F32, (4, 2, 4)), **rate})


def test_random_data_fits_the_model_repeats_and_says_what_it_is() -> None:
    inputs: Inputs = {
        "x": (F32, (None, 3, "h", 8)),
        "h": (np.dtype(ml_dtypes.bfloat16), (2, 3)),
        "ids": (I64, ("batch", "seq")),
        "on": (np.dtype(bool), ()),
        "text": (np.dtype(object), (2,)),
    }
    source = open_source("random", inputs)
    assert source.random
    assert source.name == "random"
    first, second = list(source), list(source)
    assert len(first) == 16
    same(first, second)
    assert first[0]["x"].shape == (1, 3, 64, 8)
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    assert len(list(open_source("random", inputs, samples=3))) == 3


def test_values_of_free_or_unknown_shape_pass() -> None:
    inputs: Inputs = {"x": (F32, None), "y": (F32, (None, "length"))}
    found = list(open_source([{"x": np.array(3, np.float32), "y": np.ones((1, 0), np.float32)}], inputs))
    assert found[0]["x"].shape == ()


def test_a_generator_is_refused_because_it_can_be_read_once() -> None:
    message = refused(feed for feed in feeds())
    assert "only once" in message
    assert "without calling it" in message


def test_a_function_that_returns_the_same_generator_is_found_out() -> None:
    once = iter(feeds())
    source = open_source(lambda: once, INPUTS)
    assert len(list(source)) == 5
    with pytest.raises(DataError, match="gave 5 samples the first time and 0 the next"):
        list(source)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (feeds(1)[0], ["one dict", "a list of dicts"]),
        (3, ["an int", ".npz"]),
        (lambda: feeds(1)[0], ["a dict", "yield one dict"]),
        (lambda: None, ["None", "iterable"]),
        ("nowhere", ["'nowhere' does not exist", ".npz", "'random'"]),
        ("nowhere.npz", ["no file 'nowhere.npz'"]),
        ("nowhere.py:f", ["no file 'nowhere.py'"]),
        ("no.such.package:f", ["cannot be imported", "No module named"]),
        (":f", ["cannot be imported"]),
        ("json:nothing", ["'json' has no function 'nothing'"]),
        ("json:dupms", ["did you mean 'dumps'?"]),
    ],
)
def test_what_is_no_source_is_refused_with_what_would_be_one(given_: Any, words: list[str]) -> None:
    message = refused(given_)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", ["failed at sample 2", "KeyError: 'label'"]),
        ("breaks_at_once", ["failed at sample 0", "OSError: no camera"]),
        ("wants", ["failed at sample 0", "TypeError", "argument"]),
        ("one_dict", ["returned a dict"]),
        ("nothing", ["returned None"]),
        ("sampels", ["no function 'sampels'", "did you mean 'samples'?"]),
        ("number", ["no function 'number'"]),
    ],
)
def test_a_function_that_fails_is_named_with_its_error(function: str, words: list[str], tmp_path: Path) -> None:
    text = in_code(tmp_path).replace("samples", function)
    message = refused(text)
    assert all(word in message for word in (*words, "load.py")), message


def test_the_error_of_the_user_is_kept_as_the_cause(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(open_source(in_code(tmp_path).replace("samples", "broken"), INPUTS))
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_of_ours_inside_the_function_stay_as_they_are() -> None:
    def fails() -> Iterator[Feeds]:
        yield feeds(1)[0]
        raise UsageError("as it was")

    with pytest.raises(QCompilerError, match="^as it was$"):
        list(open_source(fails, INPUTS))


def test_a_file_that_fails_when_loaded_is_named_and_leaves_no_module(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import json\n1 / 0\n")
    message = refused(f"{tmp_path / 'bad.py'}:f")
    assert "bad.py' fails when it is loaded: ZeroDivisionError" in message
    assert not [name for name in sys.modules if name.startswith("qcompiler_data_bad")]
    (tmp_path / "worse.py").write_text("def f(:\n")
    assert "SyntaxError" in refused(f"{tmp_path / 'worse.py'}:f")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "load.py").write_text(
            f"import numpy as np\ndef f():\n    return [{{'n': np.array([{value}])}}]\n"
        )
    inputs: Inputs = {"n": (I64, ("batch",))}
    sources = [open_source(f"{tmp_path / folder / 'load.py'}:f", inputs) for folder in "ab"]
    assert [int(next(iter(source))["n"][0]) for source in sources] == [1, 2]


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    bombs = np.array([Bomb(), Bomb()], object)
    (tmp_path / "set").mkdir()
    for path in (tmp_path / "set.npz", tmp_path / "set" / "0.npz"):
        write(path, x=bombs, n=np.arange(2))
    for path in (tmp_path / "set.npz", tmp_path / "set"):
        message = refused(path)
        assert "array 'x'" in message
        assert "pickled" in message
        assert "never loaded" in message
    assert not (tmp_path / "exploded").exists()


def test_archives_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    write(path, x=np.ones((5, 4), np.float32), n=np.arange(4))
    message = refused(path)
    assert "'x' 5" in message
    assert "'n' 4" in message
    write(path, x=np.ones((0, 4), np.float32), n=np.arange(0))
    assert "has no samples" in refused(path)
    write(path)
    assert "has no samples" in refused(path)
    write(path, x=np.ones((1, 4), np.float32))
    assert "sample 0" in refused(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(b"no archive")
    assert "cannot be read as .npz" in refused(path)
    content = in_npz(tmp_path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read as .npz" in refused(path)
    rng = np.random.default_rng(0)
    pack(path, x=rng.standard_normal((50, 4)).astype(np.float32), n=np.arange(50))
    content = path.read_bytes()
    path.write_bytes(content[:400] + bytes(64) + content[464:])
    assert "cannot be read as .npz" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00 nothing like it")
    assert "array 'x.npy'" in refused(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (9, 4)})
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(16))
        assert "ends too early" in refused(path, {"x": (F32, ("batch", 4))})


def test_a_folder_without_archives_is_refused(tmp_path: Path) -> None:
    assert "has no .npz file" in refused(tmp_path)


@pytest.mark.parametrize("options", [{"samples": 0}, {"batch": 0}, {"samples": -1}])
def test_counts_below_one_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        open_source(feeds(), INPUTS, **options)


def test_only_one_batch_is_in_memory_at_a_time() -> None:
    alive: list[int] = []

    def stream() -> Iterator[Feeds]:
        for index, feed in enumerate(feeds(20)):
            alive.append(index)
            yield feed

    source = iter(open_source(stream, INPUTS, batch=4).along(AXES))
    next(source)
    assert alive == [0, 1, 2, 3]


def test_a_source_names_what_it_is_made_of(tmp_path: Path) -> None:
    assert isinstance(open_source(feeds, INPUTS), Source)
    assert open_source(feeds, INPUTS).name == "function 'feeds'"
    assert "list" in open_source(feeds(), INPUTS).name
    assert "set.npz" in open_source(in_npz(tmp_path), INPUTS).name
