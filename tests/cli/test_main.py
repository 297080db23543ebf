"""The command line: which call a line becomes, what goes where, and how every kind of failure ends.

`compile`, `quantize` and `build` are replaced here; tests of the compiler run the real ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import __version__, errors
from qcompiler.cli.main import main
from qcompiler.support.interrupts import WRITTEN, Terminated


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs `compile` with a compiler that raises; returns the exit code."""

    def run(error: BaseException, *options: str) -> int:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("qcompiler.compiler.compile.compile", fail)
        return main(["compile", "m.onnx", *options])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("wrong"), 2),
        (errors.PipelineError("wrong"), 2),
        (errors.ModelError("wrong"), 3),
        (errors.DataError("wrong"), 4),
        (errors.AccuracyError("wrong"), 5),
        (errors.EngineError("wrong"), 6),
    ],
)
def test_each_error_ends_with_its_exit_code_and_one_paragraph(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert failing(error) == code
    assert capfd.readouterr() == ("", "error: wrong\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("oh\nno"), errors.PassError("oh no")])
def test_a_defect_asks_for_a_report_and_shows_no_traceback(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert failing(error) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("internal error: ")
    assert "oh no" in err
    assert "Please report it" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ZeroDivisionError("oh no"), errors.ModelError("oh no")])
def test_debug_shows_the_traceback(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert failing(error, "--debug") == getattr(error, "exit_code", 1)
    assert "Traceback" in capfd.readouterr().err


def test_an_interruption_ends_with_130_and_one_line(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capfd.readouterr().err == "interrupted: nothing was written\n"


def test_termination_ends_with_143_and_one_line(failing: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert failing(Terminated()) == 143
    assert capfd.readouterr().err == "terminated: nothing was written\n"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_an_interruption_behind_the_last_artefact_says_that_all_is_there(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str], kind: type[KeyboardInterrupt]
) -> None:
    failing(kind(WRITTEN))
    assert capfd.readouterr().err.endswith("ed: by then everything was written\n")


def test_an_sm_that_tensorrt_rtx_lacks_is_exit_code_6(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "m.onnx", "--target", "tensorrt-rtx:sm90"]) == 6
    assert "TensorRT-RTX has no sm90" in capfd.readouterr().err


@pytest.mark.parametrize("file", ["none.onnx", "broken.onnx"])
def test_a_model_that_cannot_be_read_is_exit_code_3(
    models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str
) -> None:
    first, second, data = models
    (tmp_path / "broken.onnx").write_bytes(Path(second).read_bytes()[:60])
    assert main(["verify", first, str(tmp_path / file), "--data", data]) == 3
    assert file in capfd.readouterr().err


def test_data_that_does_not_fit_is_exit_code_4(
    models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros((2, 3, 5, 7), np.float32))
    assert main(["verify", models[0], models[1], "--data", str(tmp_path / "other.npz")]) == 4
    assert "'x'" in capfd.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "from qcompiler.cli.main import main; import sys; sys.exit(main(['passes', '--json']))"
    done = subprocess.run(
        f'{sys.executable} -c "{script}" | head -c 1; echo ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[0\n"
    assert done.stderr == ""


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "qcompiler", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qcompiler {__version__}\n", "")
