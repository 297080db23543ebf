"""What is said goes to stderr, and the result alone to stdout."""

from __future__ import annotations

import json
import logging
import os
import warnings
from typing import Any

import pytest

from qcompiler.cli.main import main
from qcompiler.recipe.recipe import Recipe

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
