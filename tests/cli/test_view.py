"""What is said goes to stderr, and the result alone to stdout."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from qcompiler.cli.main import main
from qcompiler.cli.view import opened
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.progress import Lines, silent

Call = dict[str, Any]


def test_json_alone_is_on_stdout_whatever_libraries_print(
    calls: list[Call], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.compiler import compile as compiler

    quiet = compiler.compile

    def loud(*args: Any, **options: Any) -> Any:
        os.write(1, b"a library talks\n")
        warnings.warn("a library warns", stacklevel=1)
        logging.getLogger("library").error("a library logs")
        return quiet(*args, **options)

    monkeypatch.setattr(compiler, "compile", loud)
    assert main(["compile", "m.onnx", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["recipe"] == Recipe().to_dict()
    assert "a library talks" in err
    assert "watch out" in err
    assert "a library warns" not in err
    assert "a library logs" not in err


def test_without_json_the_summary_is_on_stdout_and_progress_on_stderr(
    calls: list[Call], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "m.onnx"]) == 0
    out, err = capfd.readouterr()
    assert "int8 for tensorrt-rtx" in out
    assert "→ out/m.engine" in out
    assert err.startswith("observe: ")
    assert main(["compile", "m.onnx", "--quiet"]) == 0
    assert capfd.readouterr().err == ""


def options(**given: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "quiet": False, "debug": False, **given})


@pytest.mark.parametrize("json_", [True, False])
def test_streams_and_logging_are_as_they_were_afterwards(json_: bool, capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with opened(options(json=json_)) as view:
            os.write(1, b"inside\n")
            view.result({"a": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    os.write(1, b"behind\n")
    out, err = capfd.readouterr()
    assert out == ('{\n "a": 1\n}\nbehind\n' if json_ else "inside\nbehind\n")
    assert err == ("inside\n" if json_ else "")
    assert logging.root.manager.disable == logging.NOTSET


def test_a_result_is_strict_json_in_any_alphabet(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(options(json=True)) as view:
        view.result({"выход": math.inf, "b": math.nan, "path": Path("a/ü")})
    out = capfd.readouterr().out
    assert "выход" in out
    assert json.loads(out, parse_constant=pytest.fail) == {"выход": "inf", "b": None, "path": "a/ü"}


def test_people_are_told_nothing_only_where_they_asked_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        for json_ in (False, True):
            with opened(options(json=json_, quiet=quiet)) as view:
                view.people("a table [1]")
            text = "a table [1]\n"
            assert capfd.readouterr() == (("" if json_ else text), (text if json_ and not quiet else ""))


def test_debug_lets_libraries_speak(recwarn: pytest.WarningsRecorder) -> None:
    with opened(options(debug=True)):
        assert logging.root.manager.disable == logging.NOTSET
    with opened(options()):
        assert logging.root.manager.disable == logging.CRITICAL
        warnings.warn("a library warns", stacklevel=1)
    assert len(recwarn) == 0


def test_progress_is_silent_where_it_is_asked_to_be() -> None:
    with opened(options(quiet=True)) as view:
        assert view.progress is silent
    with opened(options()) as view:
        assert isinstance(view.progress, Lines)
