"""The command line: which call a line becomes, what goes where, and how every kind of failure ends.

`compile`, `quantize` and `build` are replaced here; tests of the compiler run the real ones.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler import errors
from qcompiler.cli.main import main
from qcompiler.recipe.recipe import PRESETS, Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.report import manifest
from tests.kit import manifests

Call = dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Replaces the three commands that take long; each records how it was called."""
    made: list[Call] = []

    def command(name: str) -> Callable[..., SimpleNamespace]:
        def run(source: str, **options: Any) -> SimpleNamespace:
            made.append({"command": name, "source": source, **options})
            with options["progress"].stage("observe", 3) as stage:
                stage.advance()
            record = manifests.build(source=None, recipe=options["recipe"], warnings=["watch out"])
            return SimpleNamespace(manifest=record, engine_path=Path("out/m.engine"), qdq_path=None)

        return run

    for name in ("compile", "quantize", "build"):
        monkeypatch.setattr(f"qcompiler.compiler.{name}", command(name))
    return made


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs `compile` with a compiler that raises; returns the exit code."""

    def run(error: BaseException, *options: str) -> int:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("qcompiler.compiler.compile.compile", fail)
        return main(["compile", "m.onnx", *options])

    return run


def save(path: Path, factor: float = 1.0) -> Path:
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    graph = helper.make_graph([node], "g", [rows], [out], [numpy_helper.from_array(weight * np.float32(factor), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str, str]:
    """A model, one whose outputs are 1 % larger (40 dB), and data."""
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32))
    return str(save(tmp_path / "f.onnx")), str(save(tmp_path / "q.onnx", 1.01)), str(tmp_path / "data.npz")


def test_options_become_the_recipe(calls: list[Call]) -> None:
    line = "compile m.onnx --data d.npz --samples 7 --batch 2 --workers 2 --keep ^a --keep b$ --min-sqnr 20 --strict"
    line += " --target tensorrt-rtx:sm89 --high-precision fp32 --metric m.py:f --max-drop 0.01 --verify-samples 3"
    line += " --verify-data e.npz --weight-granularity tensor --calibrator minmax -o out/m.engine"
    assert main([*line.split(), "--shapes", "x=1,2,3", "--shapes", "n=4"]) == 0
    (call,) = calls
    assert call["recipe"] == Recipe(
        samples=7,
        batch=2,
        workers=2,
        keep=("^a", "b$"),
        min_sqnr=20,
        strict=True,
        target="tensorrt-rtx:sm89",
        high_precision="fp32",
        metric="m.py:f",
        max_drop=0.01,
        verify_samples=3,
        verify_data="e.npz",
        weight_granularity="tensor",
        calibrator="minmax",
        shapes={"x": ((1,), (2,), (3,)), "n": ((4,), (4,), (4,))},
    )
    assert (call["source"], call["data"], call["output"]) == ("m.onnx", "d.npz", "out/m.engine")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("compile models/m.onnx", "m.engine"),
        ("quantize models/m.onnx", "m.qdq.onnx"),
        ("build models/m.qdq.onnx", "m.engine"),
    ],
)
def test_the_output_is_named_after_the_model(calls: list[Call], line: str, output: str) -> None:
    assert main(line.split()) == 0
    assert (calls[0]["command"], calls[0]["output"]) == (line.split()[0], output)


def test_options_stand_over_the_recipe_file_and_keep_adds_to_it(calls: list[Call], tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('samples = 7\nbatch = 2\nkeep = ["a"]\n[safety]\nmin_share = 0.5\n')
    assert main(["compile", "m.onnx", "--recipe", str(file), "--samples", "9", "--keep", "b"]) == 0
    assert calls[0]["recipe"] == Recipe(samples=9, batch=2, keep=("a", "b"), safety=SafetyTable(min_share=0.5))


def test_a_precision_without_a_recipe_starts_from_its_preset(calls: list[Call]) -> None:
    assert main(["compile", "m.onnx", "--precision", "fp8"]) == 0
    assert main(["compile", "m.onnx", "--precision", "fp8", "--target", "tensorrt-rtx:sm120"]) == 0
    assert [call["recipe"].target for call in calls] == ["tensorrt-rtx:sm89", "tensorrt-rtx:sm120"]
    assert calls[0]["recipe"].calibrator == "mse"


def test_a_manifest_is_replayed(calls: list[Call], tmp_path: Path) -> None:
    recipe = Recipe(samples=3, keep=("x",))
    (tmp_path / "m.json").write_text(manifest.to_text(manifests.build(source=None, recipe=recipe)))
    assert main(["compile", "m.onnx", "--recipe", str(tmp_path / "m.json")]) == 0
    assert calls[0]["recipe"] == recipe


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


def test_an_sm_that_tensorrt_rtx_lacks_is_exit_code_6(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "m.onnx", "--target", "tensorrt-rtx:sm90"]) == 6
    assert "TensorRT-RTX has no sm90" in capfd.readouterr().err


def test_verify_compares_and_its_gate_ends_with_5(
    models: tuple[str, str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, data = models
    assert main(["verify", first, second, "--data", data, "--min-sqnr", "39"]) == 0
    assert "40.0 dB" in capfd.readouterr().out
    assert main(["verify", first, second, "--data", data, "--min-sqnr", "41", "--json"]) == 5
    out, err = capfd.readouterr()
    assert json.loads(out)["worst_sqnr_db"] == pytest.approx(40, abs=0.01)
    assert "reaches 40.00 dB of SQNR and at least 41 dB was asked for" in err


def test_verify_takes_a_metric(models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second, data = models
    file = tmp_path / "metric.py"
    file.write_text(
        "import numpy as np\nMETRIC = 'total'\n"
        "def f(run): return abs(run({'x': np.ones((1, 4), np.float32)})['y']).sum()\n"
    )
    line = ["verify", first, second, "--data", data, "--metric", f"{file}:f", "--max-drop"]
    assert main([*line, "0.005"]) == 0
    assert "total" in capfd.readouterr().out
    assert main(["verify", second, first, *line[3:], "0.005"]) == 5
    assert "a drop of 0.99% where at most 0.50% was allowed" in capfd.readouterr().err


def test_verify_compares_on_as_many_feeds_as_asked_for(
    models: tuple[str, str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, data = models
    assert main(["verify", first, second, "--data", data, "--samples", "3", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["samples"] == 3


def test_inspect_writes_a_report(
    models: tuple[str, str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "new" / "f.html"
    assert main(["inspect", models[0], "--data", models[2], "--report", str(report), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["file"] == "f.onnx"
    assert "<h1>f.onnx</h1>" in report.read_text(encoding="utf8")
    assert main(["inspect", models[0], "--report", str(report / "under.html")]) == 2
    assert "cannot write 'under.html'" in capfd.readouterr().err


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
    np.savez(tmp_path / "other.npz", z=np.zeros((2, 4), np.float32))
    assert main(["verify", models[0], models[1], "--data", str(tmp_path / "other.npz")]) == 4
    assert "'x'" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_printed_recipe_is_the_preset(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", name]) == 0
    file = tmp_path / "r.toml"
    file.write_text(capfd.readouterr().out)
    assert Recipe.from_toml(file) == Recipe(**PRESETS[name])
    assert main(["recipe", "check", str(file)]) == 0


def test_recipe_list_names_the_presets(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    assert capfd.readouterr().out.split() == list(PRESETS)


def test_passes_are_listed_with_their_options(capfd: pytest.CaptureFixture[str]) -> None:
    from qcompiler.passes.catalogue import ALL

    assert main(["passes", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["name"] for row in rows] == [one.name() for one in ALL]
    assert main(["passes", "fold-constants"]) == 0
    assert "requires" in capfd.readouterr().out


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
from qcompiler.cli import main
try:
    main(["compile", "--help"])
except SystemExit:
    heavy = {"numpy", "onnx", "onnxruntime", "rich", "onnx_graphsurgeon", "numba", "matplotlib", "tensorrt_rtx"}
    sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "from qcompiler.cli import main; import sys; sys.exit(main(['passes', '--json']))"
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
