"""Refusals, missed gates and interruptions of the compiler: the right error, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.cli.main import main
from qcompiler.compiler.build import build
from qcompiler.compiler.compile import compile, quantize
from qcompiler.errors import AccuracyError, DataError, EngineError, ModelError, UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.session import Session
from tests.kit.cases import SAMPLES, Case, convnet, prepared, state
from tests.kit.rewrite import model


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


# --- Refusals leave nothing behind ------------------------------------------------------------------------------------


FAILED = ["m.failed.manifest.json", "m.failed.report.html"]


def refused(
    case: Case, error: type[Exception], match: str, *, data: Any = None, left: tuple[str, ...] = (), **recipe: Any
) -> None:
    """A compile that must end with this error and leave the output folder as it was: with an older engine in it."""
    case.out.mkdir(exist_ok=True)
    (case.out / "m.engine").write_bytes(b"older")
    before = state(case.source)
    with pytest.raises(error, match=match) as caught:
        compile(
            case.source,
            data=str(case.data) if data is None else data or None,
            recipe=Recipe(**recipe),
            output=case.out / "m.engine",
        )
    assert "\n" not in str(caught.value)
    assert case.left() == sorted(["m.engine", *left])
    assert (case.out / "m.engine").read_bytes() == b"older"
    assert state(case.source) == before


def test_data_with_nan_is_refused_with_sample_and_input(conv: Case) -> None:
    rows = conv.rows
    rows[17, 1, 2, 3] = np.nan
    refused(conv, DataError, "sample 17.*'x'", data=[{"x": rows[i : i + 1]} for i in range(SAMPLES)])


def test_a_model_that_overflows_is_refused_with_the_node(conv: Case) -> None:
    proto = model(
        ("Conv", "x w", "c"),
        ("Mul", "c c", "e"),
        ("Conv", "e v", "y"),
        inputs={"x": ("n", 3, 8, 8)},
        weights={"w": np.full((16, 3, 1, 1), 1e20, np.float32), "v": np.eye(16, dtype="f").reshape(16, 16, 1, 1)},
    )
    onnx.save(proto, conv.source)
    refused(conv, ModelError, r"'E' \(Mul\)", data=[{"x": np.ones((1, 3, 8, 8), np.float32)}])


def test_a_weight_that_is_not_finite_is_named(conv: Case) -> None:
    proto = convnet()
    weight = next(t for t in proto.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values[3, 4, 1, 1] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    onnx.save(proto, conv.source)
    refused(conv, ModelError, "w2")


def test_an_operator_that_the_engine_lacks_is_refused_before_anything_long(conv: Case) -> None:
    proto = model(
        ("Conv", "x w", "c"),
        ("Flatten", "c", "f", {"axis": 0}),
        ("Unique", "f", "u"),
        ("Reshape", "u s", "r"),
        ("ReduceSum", "r", "y"),
        inputs={"x": ("n", 3, 8, 8)},
        weights={"w": np.ones((16, 3, 3, 3), np.float32), "s": np.array([-1])},
    )
    onnx.save(proto, conv.source)
    read: list[int] = []

    def watched() -> Iterator[Any]:
        for index in range(SAMPLES):
            read.append(index)
            yield {"x": np.full((1, 3, 8, 8), index, np.float32)}

    refused(conv, EngineError, r"U \(Unique\).*onnxruntime", data=watched)
    assert SAMPLES <= len(read) < 2 * SAMPLES  # all once, to deal them; a few to check with; not to observe


@pytest.mark.parametrize("gate", [{"min_sqnr": 150.0}, {"max_drop": 0.0, "metric": "METRIC"}])
def test_a_gate_that_cannot_be_met_is_an_error_and_leaves_what_was_tried(conv: Case, gate: dict[str, Any]) -> None:
    file = conv.folder / "metric.py"
    x = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)
    file.write_text(
        "import numpy as np\nx = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)\n"
        "def exact(run): return 100 - abs(run({'x': x})['y'] - WANTED).sum()\n"
        f"WANTED = np.array({Session(conv.source).run({'x': x})['y'].tolist()})\n"
    )
    if "metric" in gate:
        gate = {**gate, "metric": f"{file}:exact"}
    refused(conv, AccuracyError, "asked for|allowed", left=tuple(FAILED), **gate)


def test_wrong_requests_are_refused_before_the_model_is_read(conv: Case) -> None:
    conv.source.write_bytes(b"this is no model")
    refused(conv, EngineError, "sm80 cannot compute in FP8", precision="fp8", target="tensorrt-rtx:sm80,sm89")
    refused(conv, EngineError, "sm86 cannot compute in FP8", attention="fp8", target="tensorrt-rtx:sm86")
    refused(conv, UsageError, "give --data", data="")
    refused(conv, UsageError, "give --data", data="", precision="fp16")
    refused(conv, UsageError, "contradict", precision="fp16", high_precision="fp32")
    refused(conv, ModelError, "not a readable ONNX model")
    with pytest.raises(EngineError, match="TensorRT-RTX has no sm90"):
        Recipe(target="tensorrt-rtx:sm90")


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(conv: Case) -> None:
    conv.source.write_bytes(b"this is no model")
    (conv.folder / "file").write_text("in the way")
    (conv.folder / "taken.engine").mkdir()
    for output in (conv.folder / "file" / "m.engine", conv.folder / "taken.engine"):
        with pytest.raises(UsageError, match="cannot write"):
            compile(conv.source, data=str(conv.data), output=output)
    assert sorted(one.name for one in conv.folder.iterdir()) == ["data.npz", "file", "float.onnx", "taken.engine"]


def test_the_output_may_not_be_the_model_itself(conv: Case) -> None:
    before = state(conv.source)
    with pytest.raises(UsageError, match="is the model itself"):
        quantize(conv.source, data=str(conv.data), output=conv.source)
    with pytest.raises(UsageError, match="is the model itself"):
        build(conv.source, data=str(conv.data), output=conv.source)
    assert state(conv.source) == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--data", "DATA", "--precision", "int3-weight"], 2),
        (["--data", "DATA", "--precision", "fp8", "--target", "tensorrt-rtx:sm80"], 6),
        ([], 2),
        (["--data", "DATA", "--target", "tensorrt-rtx:sm90"], 6),
        (["--data", "WRONG"], 4),
        (["--data", "DATA", "--min-sqnr", "150"], 5),
    ],
)
def test_the_command_ends_with_the_exit_code_of_the_failure(
    conv: Case, capfd: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    np.savez(conv.folder / "wrong.npz", x=np.ones((2, 3, 16, 17), np.float64))
    places = {"DATA": str(conv.data), "WRONG": str(conv.folder / "wrong.npz")}
    given = [places.get(option, option) for option in options]
    conv.out.mkdir()
    line = ["compile", str(conv.source), *given, "-o", str(conv.out / "m.engine"), "--quiet"]
    assert main(line) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert conv.left() == (FAILED if code == 5 else [])


# --- Interruptions ----------------------------------------------------------------------------------------------------

SLOW = """
import time
import numpy as np
def slow():
    for k in range(4):
        yield {"x": np.ones((1, 3, 16, 16), np.float32) * k}
    open(r"MARKER", "w").close()
    time.sleep(600)
"""
# A test run in the background ignores SIGINT and would pass that on
RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from qcompiler.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def running(conv: Case) -> Iterator[Any]:
    """Starts `qcompiler compile` in a process of its own; ends it whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def start(data: str) -> subprocess.Popen[str]:
        line = ["compile", str(conv.source), "--data", data, "-o", str(conv.out / "m.engine")]
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *line], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], found: Any) -> None:
    limit = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


ENDS = {  # by signal, the exit code and what is said last
    signal.SIGINT: (130, "interrupted: nothing was written\n"),
    signal.SIGTERM: (143, "terminated: nothing was written\n"),
    signal.SIGKILL: (-signal.SIGKILL, ""),
}
FINAL = {"m.engine", "m.qdq.onnx", "m.manifest.json", "m.report.html"}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_compile_that_is_killed_while_it_reads_data_leaves_nothing(
    conv: Case, running: Any, how: signal.Signals
) -> None:
    marker = conv.folder / "marker"
    (conv.folder / "slow.py").write_text(SLOW.replace("MARKER", str(marker)))
    process = running(f"{conv.folder / 'slow.py'}:slow")
    wait_for(process, marker.exists)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    code, said = ENDS[how]
    assert process.returncode == code
    assert conv.left() == []
    assert err.endswith(said)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_compile_that_is_killed_while_it_builds_leaves_nothing_under_a_final_name(
    conv: Case, running: Any, how: signal.Signals
) -> None:
    process = running(str(conv.data))
    wait_for(process, lambda: any(name == "m.qdq.onnx" for name in conv.left()))  # in the folder of unfinished work
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == ENDS[how][0]
    assert not {one.name for one in conv.out.glob("*")} & FINAL
    assert how == signal.SIGKILL or conv.left() == []
