"""Options: help at once, and a wrong line is answered with what was meant."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from qcompiler.cli.main import main

Call = dict[str, Any]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("compil m.onnx", "there is no command 'compil': did you mean 'compile'? 'qcompiler --help'"),
        ("", "the following arguments are required: COMMAND"),
        ("compile", "the following arguments are required: SOURCE"),
        ("compile m.onnx --presision int8", "unknown option or argument '--presision' (did you mean '--precision'?)"),
        ("compile m.onnx --precision int9", "there is no --precision 'int9': did you mean 'int8'?"),
        ("compile m.onnx --samples many", "argument --samples: invalid int value: 'many'"),
        ("compile m.onnx --samples 0", "recipe key 'samples' = 0: allowed is an integer of at least 1"),
        ("compile m.onnx --shapes x", "shapes 'x' cannot be read"),
        ("compile m.onnx --fix-input x", "fixed input 'x' cannot be read: allowed is"),
        ("inspect m.onnx --fix-shape x=ax3", "fixed shape 'x=ax3' cannot be read: allowed is"),
        ("compile m.onnx --batch-axis x", "batch axis 'x' cannot be read: allowed is"),
        ("compile m.onnx --objective speed", "there is no --objective 'speed'"),
        ("compile m.onnx --effort all", "there is no --effort 'all'"),
        ("quantize m.onnx --pick best", "recipe key 'pick' = 'best': allowed is one of fastest"),
        ("quantize m.onnx --search-time soon", "recipe key 'search_time' = 'soon': allowed is a time such as"),
        ("quantize m.onnx --effort quick --search-time 2m", "recipe keys 'effort' and 'search_time'"),
        ("compile m.onnx --max-drop 0.1", "recipe key 'max_drop' needs 'metric'"),
        (
            "compile m.onnx --recipe int7",
            "there is no recipe 'int7': neither a file nor a preset; did you mean 'int8'?",
        ),
        ("compile m.onnx --recipe none.toml", "recipe none.toml cannot be read: No such file or directory"),
        ("compile m.onnx --target tensorrt-rtx:sm", "'target' = 'tensorrt-rtx:sm': allowed is an engine"),
        ("compile m.onnx --calibrator Best!", "'calibrator' = 'Best!': allowed is a calibrator"),
        ("verify f.onnx q.onnx", "one of the arguments --data --text is required"),
        ("recipe show int7", "there is no recipe 'int7'"),
        ("passes fold-constant", "there is no pass 'fold-constant': did you mean 'fold-constants'?"),
    ],
)
def test_a_wrong_line_is_answered_with_what_was_meant(
    calls: list[Call], capfd: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    assert main(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize(
    "command", ["", "compile", "quantize", "build", "verify", "inspect", "sensitivity", "passes", "recipe show"]
)
def test_every_command_has_help(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    out = capfd.readouterr().out
    assert "exit codes:" in out or command == ""


HELP = """
import sys
from qcompiler.cli.main import main
try:
    main(["compile", "--help"])
except SystemExit:
    heavy = {"numpy", "onnx", "onnxruntime", "rich", "onnx_graphsurgeon", "numba", "matplotlib", "tensorrt_rtx"}
    sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
