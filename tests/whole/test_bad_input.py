"""Bad input through the real command line: the documented exit code, one readable paragraph, and nothing touched.

Every case runs in a folder of its own that is compared before and after: files, bytes, times, folders.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from qcompiler.cli.main import main
from tests.kit.rewrite import model
from tests.kit.room import WEIGHT, Room, furnished, layers, paragraph, rows, unknown_operator


@pytest.fixture
def room(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Room:
    return furnished(tmp_path, capfd)


def test_what_is_refused_below_is_accepted_when_nothing_is_wrong(room: Room) -> None:
    record = room.passes(layers())
    assert {one["precision"] for one in record["plan"] if one["op"] == "MatMul"} == {"int8"}
    assert sorted(os.listdir(room.output.parent)) == ["m.manifest.json", "m.qdq.onnx", "m.report.html"]


# --- The model --------------------------------------------------------------------------------------------------------


def cyclic() -> onnx.ModelProto:
    proto = layers()
    proto.graph.node[0].input[0] = "y"
    return proto


def elsewhere(location: str) -> Callable[[Room], None]:
    """The first weight lies in another file; there is one inside the folder and one outside of it."""

    def edit(room: Room) -> None:
        (room.folder / "inner").mkdir()
        (room.folder / "w.bin").write_bytes(WEIGHT.tobytes())
        (room.folder / "inner" / "link.bin").symlink_to(room.folder / "w.bin")
        proto = layers()
        weight = proto.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        room.model.unlink()
        room.folder = room.folder / "inner"
        np.savez(room.data, x=rows())
        onnx.save(proto, room.model)

    return edit


def content(made: Callable[[bytes], bytes]) -> Callable[[Room], object]:
    return lambda room: room.model.write_bytes(made(room.model.read_bytes()))


def weight(value: float) -> Callable[[Room], None]:
    def edit(room: Room) -> None:
        proto, values = layers(), WEIGHT.copy()
        values[3, 4] = value
        proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "w2"))
        onnx.save(proto, room.model)

    return edit


def folder(room: Room) -> None:
    room.model.unlink()
    room.model.mkdir()


MODELS: dict[str, tuple[Callable[[Room], object], tuple[str, ...]]] = {
    "truncated": (content(lambda held: held[: len(held) // 2]), ("m.onnx", "cut short", "again")),
    "random": (content(lambda held: np.random.default_rng(7).bytes(5000)), ("m.onnx", "not a readable ONNX model")),
    "empty": (content(lambda held: b""), ("m.onnx", "is empty")),
    "text": (content(lambda held: b"hello, I am no model\n" * 9), ("m.onnx", "not a readable ONNX model")),
    "missing": (lambda room: room.model.unlink(), ("there is no file", "m.onnx")),
    "folder": (folder, ("m.onnx", "is a folder")),
    "cyclic": (lambda room: onnx.save(cyclic(), room.model), ("cyclic", "'H'")),
    "external-missing": (elsewhere("none.bin"), ("'w1'", "'none.bin'", "cannot be read")),
    "external-escapes": (elsewhere("../w.bin"), ("'w1'", "'../w.bin'", "outside")),
    "external-linked": (elsewhere("link.bin"), ("'w1'", "'link.bin'", "outside")),
    "external-absolute": (elsewhere("/etc/hostname"), ("'w1'", "'/etc/hostname'", "outside")),
    "weight-nan": (weight(np.nan), ("'w2'", "'Y'", "NaN")),
    "weight-infinite": (weight(np.inf), ("'w2'", "'Y'", "1 of 1024")),
}


@pytest.mark.parametrize(("target", "code"), [("tensorrt-rtx", 6), ("onnxruntime", 3)])
def test_an_operator_that_nobody_knows_is_named_and_no_fault_of_the_file_where_an_engine_may_know_it(
    room: Room, target: str, code: int
) -> None:
    unknown_operator(room)
    room.refused(code, "AcmeClip", "com.acme", "'R'", options=("--target", target))


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_that_cannot_be_used_is_exit_code_3(room: Room, name: str) -> None:
    edit, says = MODELS[name]
    edit(room)
    room.refused(3, *says)


def overflowing() -> onnx.ModelProto:
    """Squares the square of what the first layer gives, and subtracts: fine up to 1e9, NaN from 1e10 on."""
    return model(
        ("MatMul", "x w1", "h"),
        ("Mul", "h h", "s"),
        ("Mul", "s s", "q"),
        ("Sub", "q q", "z"),
        ("MatMul", "z w2", "y"),
        inputs={"x": ("n", 16, 32)},
        weights={"w1": WEIGHT, "w2": WEIGHT.T.copy()},
    )


@pytest.mark.parametrize("sample", [0, 4])
def test_nan_that_arises_inside_the_model_is_traced_to_the_node_where_it_begins(room: Room, sample: int) -> None:
    onnx.save(overflowing(), room.model)
    values = rows()
    values[sample] *= 1e12
    np.savez(room.data, x=values)
    room.refused(3, f"sample {sample}", "'Q' (Mul)")


@pytest.mark.parametrize("sample", [0, 4])
def test_nan_that_arises_behind_the_last_layer_is_found_too(room: Room, sample: int) -> None:
    proto = model(
        ("MatMul", "x w1", "h"),
        ("ReduceSum", "x", "t", {"keepdims": 1}),
        ("Sqrt", "t", "s"),
        ("Add", "h s", "y"),
        inputs={"x": ("n", 16, 32)},
        weights={"w1": WEIGHT},
    )
    onnx.save(proto, room.model)
    values = np.abs(rows())
    values[sample] *= -1
    np.savez(room.data, x=values)
    room.refused(3, f"sample {sample}", "'S' (Sqrt)")


# --- The data ---------------------------------------------------------------------------------------------------------


def arrays(**held: Any) -> Callable[[Room], object]:
    return lambda room: np.savez(room.data, **held)


def spoilt(value: float) -> Callable[[Room], object]:
    values = rows()
    values[3, 2, 1] = value
    return arrays(x=values)


def function(body: str) -> Callable[[Room], object]:
    def edit(room: Room) -> str:
        text = f"import numpy as np\nX = np.ones((1, 16, 32), np.float32)\ndef samples():\n    {body}\n"
        (room.folder / "feeds.py").write_text(text)
        return f"{room.folder / 'feeds.py'}:samples"

    return edit


def named(text: str) -> Callable[[Room], object]:
    return lambda room: text.replace("FOLDER", str(room.folder))


def cut_archive(room: Room) -> None:
    room.data.write_bytes(room.data.read_bytes()[:2000])


def empty_folder(room: Room) -> Path:
    (room.folder / "feeds").mkdir()
    return room.folder / "feeds"


DATA: dict[str, tuple[Callable[[Room], object], tuple[str, ...]]] = {
    "input-missing": (arrays(z=rows(), u=rows()), ("data.npz", "'z'", "'x'")),
    "input-too-many": (arrays(x=rows(), mask=rows()), ("data.npz", "'mask'")),
    "other-type": (arrays(x=rows().astype(np.float64)), ("sample 0", "'x'", "float64", "x.astype(np.float32)")),
    "other-rank": (arrays(x=rows()[:, 0, 0]), ("sample 0", "'x'", "1 axis", "takes 3")),
    "other-size": (arrays(x=rows()[..., :31]), ("sample 0", "'x'", "[1, 16, 31]", "pad, crop or resize")),
    "nan": (spoilt(np.nan), ("sample 3", "'x'", "NaN or infinite")),
    "infinite": (spoilt(-np.inf), ("sample 3", "'x'", "NaN or infinite")),
    "no-samples": (arrays(x=rows()[:0]), ("data.npz", "no samples")),
    "no-arrays": (arrays(), ("data.npz", "no samples")),
    "empty-folder": (empty_folder, ("feeds", "has no .npz file")),
    "empty-function": (function("return []"), ("feeds.py:samples", "no samples")),
    "pickled": (arrays(x=np.array([{"x": 1}, None], object)), ("data.npz", "'x'", "pickle")),
    "raises": (function("yield {'x': X}; yield {'x': X}; raise KeyError('oh')"), ("sample 2", "KeyError", "oh")),
    "raises-at-once": (function("raise RuntimeError('no disk')"), ("sample 0", "RuntimeError: no disk")),
    "exits": (function("import sys; sys.exit('no disk')"), ("sample 0", "SystemExit: no disk")),
    "returns-nothing": (function("return None"), ("feeds.py:samples", "returned None")),
    "returns-arrays": (function("return [X]"), ("sample 0", "dict")),
    "takes-arguments": (named("numpy:zeros"), ("numpy:zeros", "failed", "TypeError")),
    "no-function": (named("numpy:zeroes_of"), ("numpy", "no function 'zeroes_of'")),
    "no-module": (named("nowhere.to_be:found"), ("nowhere", "cannot be imported")),
    "no-file": (named("FOLDER/none.npz"), ("there is no file", "none.npz")),
    "no-python-file": (named("FOLDER/none.py:samples"), ("there is no file", "none.py")),
    "neither": (named("FOLDER/m.onnx"), ("m.onnx", "is a model and no data", ".npz")),
    "text": (
        lambda room: room.data.rename(room.folder / "data.csv"),
        ("data.csv", "is not something that can be read as"),
    ),
    "cut-archive": (cut_archive, ("data.npz", "zip")),
    "no-archive": (lambda room: room.data.write_bytes(b"x,y\n1,2\n"), ("data.npz", "zip")),
}


@pytest.mark.parametrize("name", list(DATA))
def test_data_that_does_not_fit_is_exit_code_4(room: Room, name: str) -> None:
    edit, says = DATA[name]
    made = edit(room)
    room.refused(4, *says, data=made if isinstance(made, (str, Path)) else None)


def test_nothing_in_a_pickle_is_run(room: Room) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(room.folder / "ran"),))

    held = np.empty(2, object)
    held[:] = Harmful()
    np.savez(room.data, x=held)
    room.refused(4, "pickle")


# --- The output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compile", "quantize", "build"])
def test_an_output_folder_that_cannot_be_is_exit_code_2_before_anything_is_read(room: Room, command: str) -> None:
    room.model.write_bytes(b"this is no model")
    (room.folder / "file").write_text("in the way")
    (room.folder / "taken.engine").mkdir()
    os.mkfifo(room.folder / "pipe")
    refusals = {
        room.folder / "file" / "m.engine": "file' is not a folder",
        room.folder / "file" / "deep" / "m.engine": "file' is not a folder",
        room.folder / "taken.engine": "folder of that name",
        room.folder / "pipe": "not a regular file",
        Path("/proc/m.engine"): "/proc",
    }
    for output, why in refusals.items():
        room.refused(2, "cannot write", why, command=command, output=output)


@pytest.mark.parametrize("command", ["quantize", "compile", "build"])
def test_the_output_may_not_be_the_model_its_weights_or_the_data(room: Room, command: str) -> None:
    onnx.save(layers(), room.model, save_as_external_data=True, location="m.bin", size_threshold=0)
    for output in (room.model, room.folder / "m.bin", room.data):
        room.refused(2, "never written to", output.name, command=command, output=output)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_is_exit_code_2_and_what_lay_there_stays(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.output.parent.mkdir(parents=True)
    room.output.write_bytes(b"older")
    monkeypatch.setattr(os, "fsync", full)
    room.refused(2, "cannot write", "m.qdq.onnx", "No space left", "has room")
    assert room.output.read_bytes() == b"older"


SMALL = 6000  # bytes that a file may have: the model does not fit, its engine neither
RUN = "import sys; from qcompiler.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("command", ["quantize", "compile"])
def test_writing_that_fails_halfway_leaves_nothing(room: Room, command: str) -> None:
    before = room.everything()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *room.line(command, "--target", "onnxruntime")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    paragraph(done.stderr, "cannot write", "File too large", str(room.output.parent))
    assert room.everything() == before


def test_a_command_in_a_process_of_its_own_ends_the_same_way(room: Room) -> None:
    room.model.write_bytes(room.model.read_bytes()[:3000])
    before = room.everything()
    line = [sys.executable, "-c", RUN, *room.line("compile")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    paragraph(done.stderr, "m.onnx", "cut short")
    assert room.everything() == before


# --- The request ------------------------------------------------------------------------------------------------------


def test_without_data_the_ranges_are_not_made_up(room: Room) -> None:
    room.refused(2, "needs the ranges", "--data", "random", data="")


REQUESTS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "fp8-below-sm89": (
        ["--precision", "fp8", "--target", "tensorrt-rtx:sm86,sm89"],
        6,
        ("sm86 cannot compute in FP8", "--target tensorrt-rtx:sm89", "--precision int8"),
    ),
    "mixed-below-sm89": (
        ["--precision", "auto:int8,fp8", "--target", "tensorrt-rtx:sm80"],
        6,
        ("sm80 cannot compute in FP8", "sm89"),
    ),
    "sm90": (["--target", "tensorrt-rtx:sm90"], 6, ("no sm90", "sm89", "--target tensorrt")),
    "target": (["--target", "tensorrt-rxt"], 2, ("'tensorrt-rxt'", "tensorrt-rtx")),
    "calibrator": (["--calibrator", "entropie"], 2, ("'entropie'", "did you mean 'entropy'")),
    "calibrator-option": (["--calibrator", "percentile{p=120}"], 2, ("percentile", "120")),
    "metric-file": (["--metric", "none.py:f"], 2, ("none.py:f", "there is no file")),
    "metric-function": (["--metric", "METRIC:score_of"], 2, ("no function 'score_of'", "did you mean 'score'")),
    "metric-signature": (["--metric", "METRIC:both"], 2, ("METRIC:both", "TypeError", "returns one number")),
    "metric-text": (["--metric", "METRIC:words"], 2, ("METRIC:words", "ValueError", "returns one number")),
    "metric-nothing": (["--metric", "METRIC:nothing"], 2, ("METRIC:nothing", "TypeError", "returns one number")),
    "keep": (["--keep", "["], 2, ("'['", "regular expression")),
    "recipe-key": (["--recipe", "RECIPE"], 2, ("r.toml", "'presision'", "did you mean 'precision'")),
    "recipe-type": (["--recipe", "TYPED"], 2, ("typed.toml", "'samples'", "integer")),
    "recipe-syntax": (["--recipe", "BROKEN"], 2, ("broken.toml", "line 1")),
}


@pytest.mark.parametrize("name", list(REQUESTS))
def test_a_request_that_cannot_be_met_is_refused_with_what_could_be_asked_for(room: Room, name: str) -> None:
    options, code, says = REQUESTS[name]
    (room.folder / "metric.py").write_text(
        "def score(run): return 1.0\ndef both(a, b): return 1.0\ndef words(run): return 'good'\n"
        "def nothing(run): pass\n"
    )
    (room.folder / "r.toml").write_text('presision = "int8"\n')
    (room.folder / "typed.toml").write_text('samples = "many"\n')
    (room.folder / "broken.toml").write_text("precision = \n")
    places = {"METRIC": "metric.py", "RECIPE": "r.toml", "TYPED": "typed.toml", "BROKEN": "broken.toml"}

    def placed(text: str) -> str:
        for key, file in places.items():
            text = text.replace(key, str(room.folder / file))
        return text

    room.refused(code, *map(placed, says), options=[placed(option) for option in options])


# --- The other commands -----------------------------------------------------------------------------------------------


def test_inspect_and_verify_end_the_same_way(room: Room, capfd: pytest.CaptureFixture[str]) -> None:
    cut, empty = room.folder / "cut.onnx", room.folder / "empty.npz"
    cut.write_bytes(room.model.read_bytes()[:3000])
    np.savez(empty, x=rows()[:0])
    lines = {
        3: (["inspect", cut], ["verify", room.model, cut, "--data", room.data]),
        4: (["inspect", room.model, "--data", empty], ["verify", room.model, room.model, "--data", empty]),
        2: (["inspect", room.model, "--target", "tensorrt-rxt"], ["verify", room.model, room.model]),
    }
    before = room.everything()
    for code, both in lines.items():
        for line in both:
            assert main([*map(str, line), "--quiet"]) == code
            out, err = capfd.readouterr()
            assert out == ""
            paragraph(err)
    assert room.everything() == before


def test_inspect_shows_a_model_with_an_operator_that_nobody_knows(
    room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    unknown_operator(room)
    assert main(["inspect", str(room.model), "--quiet"]) == 0
    assert "AcmeClip" in capfd.readouterr().out
