"""Functions named as file.py:function or module:function."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qcompiler.data.source import open_source
from qcompiler.errors import DataError, ModelError, QCompilerError, UsageError
from qcompiler.support.user_code import UserCode
from qcompiler.verification.metric import check_metric

CODE = UserCode(
    "test", forms="file.py:function", missing=UsageError, broken=ModelError, purpose="counts", opening="{text}: "
)


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """No module and no path stays."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def failure(text: str, kind: type[QCompilerError]) -> str:
    with pytest.raises(QCompilerError) as caught:
        CODE.load(text)
    assert type(caught.value) is kind
    return str(caught.value)


def test_a_file_and_a_module_of_the_current_folder_give_the_function_and_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "LABEL = 'x'\ndef f(): return 7\n", "mine_of_test.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    for text in (f"{path}:f", "mine_of_test.py:f", "mine_of_test:f"):
        function, module = CODE.load(text)
        assert function() == 7
        assert module.LABEL == "x"


def test_a_file_finds_its_neighbours_as_python_does(tmp_path: Path) -> None:
    written(tmp_path, "SIZE = 7\n", "neighbour_of_test.py")
    path = written(tmp_path, "from neighbour_of_test import SIZE\ndef f(): return SIZE\n")
    function, _ = CODE.load(f"{path}:f")
    assert function() == 7


@pytest.mark.parametrize("place", ["both_of_test.py:f", "both_of_test:f"])
def test_data_and_metrics_are_found_in_the_same_places(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "def f(): return [{}]\n", "both_of_test.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    assert list(open_source(place, {})) == [{}]
    check_metric(place)


def test_what_is_not_there_is_the_first_error_with_a_hint(tmp_path: Path) -> None:
    path = written(tmp_path, "def count(): pass\n")
    assert failure("none.py:f", UsageError).startswith("none.py:f: there is no file 'none.py'")
    assert "no function 'cuont', which counts; did you mean 'count'?" in failure(f"{path}:cuont", UsageError)
    assert "No module named 'nowhere'; give file.py:function." in failure("nowhere:f", UsageError)
    assert "give file.py:function" in failure(":f", UsageError)


def test_a_file_that_fails_is_the_second_error_keeps_its_cause_and_leaves_no_module(tmp_path: Path) -> None:
    path = written(tmp_path, "1 / 0\n")
    with pytest.raises(ModelError, match="fails when it is loaded: ZeroDivisionError") as caught:
        CODE.load(f"{path}:f")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not [name for name in sys.modules if name.startswith("qcompiler_test_mine")]
    assert "SystemExit: 3" in failure(f"{written(tmp_path, 'raise SystemExit(3)')}:f", ModelError)


def test_data_and_metrics_have_their_own_errors(tmp_path: Path) -> None:
    path = written(tmp_path, "1 / 0\n")
    with pytest.raises(DataError, match="ZeroDivisionError"):
        open_source(f"{path}:f", {})
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        check_metric(f"{path}:f")


@pytest.mark.parametrize("once", [False, True])
def test_a_file_is_run_again_or_once_until_it_changes(once: bool, tmp_path: Path) -> None:
    code = UserCode("again", forms="", missing=UsageError, broken=UsageError, once=once)
    path = written(tmp_path, "def f(): pass\n")
    first: Any = code.load(f"{path}:f")[1]
    assert (code.load(f"{path}:f")[1] is first) == once
    os.utime(path, ns=(1, 1))
    assert code.load(f"{path}:f")[1] is not first
