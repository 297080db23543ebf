"""`qcompiler bench`: what is computed while it is timed, who takes turns, what the figures say, what fails how.

No test looks at how long anything takes.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.cli.main import main
from qcompiler.errors import DataError, EngineError, ModelError, QCompilerError, UsageError
from qcompiler.report import bench as report
from qcompiler.tools.bench import bench as benching
from qcompiler.tools.bench.bench import Bench, Case, bench
from qcompiler.tools.bench.loaded import RERUNS
from tests.conftest import gpus
from tests.kit import cases, decoder, reading
from tests.kit.rewrite import model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny decoder, with and without a cache, and two ordinary models."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(decoder.decoder(), folder / "cache.onnx")
    onnx.save(decoder.decoder(cache=False), folder / "plain.onnx")
    onnx.save(decoder.decoder(batch=1), folder / "one.onnx")
    onnx.save(cases.convnet(), folder / "conv.onnx")
    onnx.save(cases.transformer(), folder / "transformer.onnx")
    return folder


@pytest.fixture(scope="module")
def texts(files: Path) -> Bench:
    """Decoders of both kinds side by side."""
    models = [files / "plain.onnx", files / "cache.onnx"]
    return bench(models, batches=(1, 2), prompts=(4, 8), generate=8, rounds=3, threads=1)


@pytest.fixture(scope="module")
def images(files: Path) -> Bench:
    """An ordinary model next to itself."""
    return bench([files / "conv.onnx"] * 2, batches=(1, 3), rounds=2, warmup=0, threads=1)


def test_decoders_have_figures_for_prefill_decode_and_throughput(texts: Bench) -> None:
    found = texts.to_json()
    assert (found["schema"], found["kind"]) == (1, "decoder")
    assert [(case["batch"], case["prompt"]) for case in found["cases"]] == [(1, 4), (2, 4), (1, 8), (2, 8)]
    for case in found["cases"]:
        assert [result["model"] for result in case["results"]] == ["plain.onnx", "cache.onnx"]
        for result in case["results"]:
            assert [result[key]["unit"] for key in ("prefill", "decode", "throughput")] == ["s", "s/token", "tokens/s"]
            assert all(0 < result[key]["low"] <= result[key]["median"] <= result[key]["high"] for key in METRICS)
        plain, cache = case["results"]
        assert (plain["decode"]["rerun"], cache["decode"]["rerun"]) == (True, False)
        assert (plain["decode"]["count"], cache["decode"]["count"]) == (3 * RERUNS, 3 * 7)
        assert plain["same_tokens"] is None
        assert cache["same_tokens"] == 1.0  # it is the same function
        assert plain["prefill"]["better"] is None
        assert cache["prefill"]["better"]["median"] > 0


METRICS = ("prefill", "decode", "throughput")


def test_models_take_turns_and_each_begins_equally_often(texts: Bench) -> None:
    assert texts.settings["order"] == [
        ["plain.onnx", "cache.onnx"],
        ["cache.onnx", "plain.onnx"],
        ["plain.onnx", "cache.onnx"],
    ]


def test_every_model_is_measured_once_in_each_round_and_case(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    real = benching._measure

    def noted(worker: Any, case: Any, *rest: Any) -> None:
        asked.append((worker.name, case.batch))
        real(worker, case, *rest)

    monkeypatch.setattr(benching, "_measure", noted)
    bench([files / "conv.onnx", files / "conv.onnx"], batches=(1, 2), rounds=2)
    one, two = "conv.onnx (1)", "conv.onnx (2)"
    assert asked == [(one, 1), (two, 1), (one, 2), (two, 2), (two, 1), (one, 1), (two, 2), (one, 2)]


def test_what_was_used_is_stated(texts: Bench) -> None:
    assert texts.settings["threads"] == 1
    assert texts.settings["data"] == "random tokens"
    plain, cache = texts.models
    assert {plain["runs_on"], cache["runs_on"]} == {"CPUExecutionProvider"}
    assert (plain["decode"], cache["decode"]) == ("rerun", "cache")
    assert (plain["cache_bytes_per_token"], cache["cache_bytes_per_token"]) == (None, 512)
    assert cache["bytes"] > 100_000
    assert cache["peak_memory_mb"] > 20


def test_ordinary_models_have_latency_and_throughput(images: Bench) -> None:
    found = images.to_json()
    assert found["kind"] == "ordinary"
    assert [row["name"] for row in found["models"]] == ["conv.onnx (1)", "conv.onnx (2)"]
    for case in found["cases"]:
        for result in case["results"]:
            assert set(result) == {"model", "latency", "throughput"}
            assert all(0 < result[key]["low"] <= result[key]["median"] <= result[key]["high"] for key in METRICS[2:])
            assert (result["latency"]["unit"], result["throughput"]["unit"]) == ("s", "samples/s")


def test_throughput_is_the_median_over_rounds_of_samples_in_a_second() -> None:
    measured = benching._Measured()
    measured.latency += [[0.5, 0.5, 9.0], [0.25, 0.25, 0.25], [1.0, 1.0, 1.0]]
    found = benching._ran(measured, None, Case(4))["throughput"]
    assert (found.low, found.median, found.high) == (6.0, 8.0, 12.0)  # 8, 16 and 4 samples/s


def test_time_ends_the_rounds(files: Path) -> None:
    found = bench(files / "conv.onnx", rounds=1000, seconds=1e-6)
    assert (found.settings["rounds"], found.settings["rounds_asked"]) == (1, 1000)


def test_data_gives_tokens_and_feeds(files: Path, tmp_path: Path) -> None:
    ids = decoder.tokens(4, 6)
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    found = bench(files / "plain.onnx", data=str(tmp_path / "ids.npz"), prompts=(20,), generate=2, rounds=1)
    assert "ids.npz" in found.settings["data"]
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 16, 16), np.float32))
    found = bench(files / "conv.onnx", data=str(tmp_path / "x.npz"), batches=(1, 5), rounds=1)
    assert [case["batch"] for case in found.cases] == [1, 5]
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 9, 9, 9), np.float32))
    with pytest.raises(DataError, match="'x'"):
        bench(files / "conv.onnx", data=str(tmp_path / "x.npz"), rounds=1)


def test_text_gives_windows_as_long_as_prompt_and_answer(
    tmp_path: Path, files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading.tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(reading.text(150), encoding="utf8")
    (tmp_path / "m.onnx").write_bytes((files / "cache.onnx").read_bytes())
    saved: list[Any] = []
    real = benching._save

    def noted(folder: Path, arrays: Any) -> Path:
        saved.append(arrays)
        return real(folder, arrays)

    monkeypatch.setattr(benching, "_save", noted)
    line = ["bench", str(tmp_path / "m.onnx"), "--text", str(tmp_path / "text.txt"), "--batch", "2", "--rounds", "1"]
    assert main([*line, "--prompt", "5", "--generate", "3", "--json"]) == 0
    assert "text.txt" in json.loads(capfd.readouterr().out)["settings"]["data"]
    (tokens,) = [arrays["tokens"] for arrays in saved]
    assert tokens.shape == (2, 8)
    assert tokens[:, 0].tolist() == [0, 0]  # each row is a window of its own, with the token that begins a text
    assert tokens[0].tolist() != tokens[1].tolist()


def test_free_sizes_need_shapes(tmp_path: Path) -> None:
    onnx.save(model(("Relu", "x", "y"), inputs={"x": ("n", "width")}), tmp_path / "free.onnx")
    with pytest.raises(UsageError, match=r"'x' is \?x\?|'x' is n"):
        bench(tmp_path / "free.onnx", rounds=1)
    shapes = {"x": ((1, 8), (1, 8), (1, 8))}
    assert bench(tmp_path / "free.onnx", shapes=shapes, rounds=1).cases[0]["batch"] == 1


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"models": ["none.onnx"]}, ModelError, "no model file"),
        ({"models": []}, UsageError, "nothing to measure"),
        ({"rounds": 0}, UsageError, "rounds must be at least 1"),
        ({"batches": (0,)}, UsageError, "batch 0"),
        ({"prompts": (0,)}, UsageError, "prompt 0"),
        ({"generate": 0}, UsageError, "generate"),
        ({"seconds": float("nan")}, UsageError, "positive number"),
        ({"models": ["plain.onnx", "conv.onnx"]}, UsageError, "'conv.onnx' is not a decoder"),
        ({"models": ["one.onnx"], "batches": (2,)}, ModelError, "1x"),
        ({"models": ["conv.onnx", "no.onnx"]}, QCompilerError, "no.onnx"),
        ({"prompts": (250,), "generate": 40}, DataError, "cannot run"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_measured_is_said(files: Path, change: dict[str, Any], kind: type[Exception], text: str) -> None:
    (files / "no.onnx").write_bytes(b"this is no model")
    options = {"models": ["plain.onnx"], "rounds": 1, "generate": 2, "prompts": (4,), **change}
    models = [files / name for name in options.pop("models")]
    with pytest.raises(kind, match=re.escape(text)):
        bench(models, **options)


def test_an_engine_without_its_gpu_says_so(tmp_path: Path, files: Path) -> None:
    if gpus():
        pytest.skip("there is a GPU here")
    (tmp_path / "m.engine").write_bytes(b"plan")
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        bench([files / "cache.onnx", tmp_path / "m.engine"], rounds=1)


def test_the_manifest_beside_an_engine_says_what_runs_it(tmp_path: Path, files: Path) -> None:
    (tmp_path / "m.engine").write_bytes((files / "cache.onnx").read_bytes())
    (tmp_path / "m.manifest.json").write_text(json.dumps({"schema": 1, "engine": {"engine": "onnxruntime"}}))
    assert bench(tmp_path / "m.engine", rounds=1, generate=2).models[0]["engine"] == "onnxruntime"


def test_names_have_as_many_folders_as_it_takes() -> None:
    assert benching._names([Path("a/m.onnx"), Path("b/m.onnx")]) == ["a/m.onnx", "b/m.onnx"]
    assert benching._names([Path("a/m.onnx"), Path("b/n.onnx")]) == ["m.onnx", "n.onnx"]
    assert benching._names([Path("m.onnx")] * 2) == ["m.onnx (1)", "m.onnx (2)"]


@pytest.mark.parametrize("result", ["texts", "images"])
def test_reports_are_made_from_plain_data(result: str, request: pytest.FixtureRequest) -> None:
    from rich.console import Console

    found = json.loads(benching.to_text(request.getfixturevalue(result)))
    console = Console(width=140, record=True, file=io.StringIO())
    for part in report.terminal(found):
        console.print(part)
    text = console.export_text()
    for row in found["models"]:
        assert row["name"] in text
    assert ("without a cache" in text) == (result == "texts")
    page = report.html(found)
    assert page.count("<svg") == len(report.METRICS[found["kind"]])
    assert page.count("<rect") == len(report.METRICS[found["kind"]]) * len(found["cases"]) * len(found["models"])
    assert "http" not in page.replace("http://www.w3.org", "")
    assert report.png(found).startswith(b"\x89PNG")


def test_names_of_models_are_escaped(images: Bench) -> None:
    text = benching.to_text(images).replace("conv.onnx", "<b>.onnx")
    assert "<b>" not in report.html(json.loads(text))


def test_the_command_writes_json_page_and_picture(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", str(files / "cache.onnx"), "--rounds", "1", "--prompt", "4,6", "--generate", "2", "--json"]
    assert main([*line, "--quiet", "-o", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "b.html").read_text(encoding="utf8").startswith("<!doctype html>")
    assert main([*line, "-o", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").stat().st_size > 1000
    assert main([*line, "-o", str(tmp_path / "b.txt")]) == 2
    assert "neither .html nor .png" in capsys.readouterr().err
    assert main(["bench", str(files / "cache.onnx"), "--batch", "one"]) == 2
    assert main(["bench", str(tmp_path / "none.onnx")]) == 3
    assert main(["bench", str(files / "one.onnx"), "--batch", "2", "--generate", "2"]) == 3


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_interrupt_ends_the_processes_of_the_models_too(files: Path, tmp_path: Path) -> None:
    # A shell starts what it puts in the background with SIGINT ignored, and that is inherited: tests may run there.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from qcompiler.cli.main import main; raise SystemExit(main())"
    )
    line = [
        "bench",
        str(files / "conv.onnx"),
        "--rounds",
        "1000000",
        "--seconds",
        "600",
        "-o",
        str(tmp_path / "b.html"),
    ]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *line],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    with process:
        assert process.stderr is not None
        while "warm up" not in process.stderr.readline():
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        known = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.stderr.read()
    assert process.returncode == 130
    assert list(temporary.glob("qcompiler-*")) == []
    assert [pid for pid in known if Path(f"/proc/{pid}").exists()] == []
    assert not (tmp_path / "b.html").exists()


def test_stdout_is_one_json_document(files: Path) -> None:
    program = "from qcompiler.cli.main import main; raise SystemExit(main())"
    line = ["bench", str(files / "conv.onnx"), "--rounds", "1", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "ordinary"
    assert "conv.onnx" in done.stderr
