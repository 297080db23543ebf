"""The benchmark of scale: models that are made run, what is ended is told, and rows become tables."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import benchmarks.scale.kills
from benchmarks import process
from benchmarks.process import Usage
from benchmarks.scale import __main__ as command
from benchmarks.scale import report
from benchmarks.scale.artefacts import artefacts, settled
from benchmarks.scale.kills import Ended, Killing, moments, spent, started_with
from benchmarks.scale.llama import make
from benchmarks.scale.measured import Measured
from benchmarks.scale.rows import STUDIES, Row
from benchmarks.scale.shape import SHAPES, Shape
from benchmarks.scale.weights import Weight, Weights
from tests.kit import manifests

SMALL = Shape(4, 64, 96, 4, 2, vocabulary=128, positions=32)


@pytest.mark.parametrize(
    "shape",
    [SMALL, replace(SMALL, half=False, outliers=False), replace(SMALL, tied=True), replace(SMALL, pairs=4, layers=1)],
    ids=["half", "plain", "tied", "one block"],
)
def test_a_made_model_is_valid_runs_and_is_made_the_same_again(tmp_path: Path, shape: Shape) -> None:
    path = make(shape, tmp_path / "a", samples=2, tokens=8)
    onnx.checker.check_model(str(path), full_check=True)
    stored = onnx.load(path, load_external_data=False).graph.initializer
    assert sum(int(np.prod(one.dims)) for one in stored if "." in one.name or one.name in NAMED) == shape.parameters
    with np.load(tmp_path / "a" / "data" / "00001.npz") as sample:
        feeds = dict(sample)
    (logits,) = onnxruntime.InferenceSession(str(path)).run(None, feeds)
    assert logits.shape == (1, 8, shape.vocabulary)
    assert logits.dtype == (np.float16 if shape.half else np.float32)
    assert np.isfinite(logits).all()
    make(shape, tmp_path / "b", samples=2, tokens=8)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


NAMED = ("embed", "lm_head", "norm.gain")


def test_the_first_token_and_a_few_channels_stand_out_in_the_early_block_only(tmp_path: Path) -> None:
    shape = replace(SMALL, width=256, inner=512)
    model = onnx.load(make(shape, tmp_path, samples=1, tokens=16))
    taps = [f"layers.{layer}.{name}" for layer in range(4) for name in ("inner", "norm2.out")]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tap) for tap in taps)
    with np.load(tmp_path / "data" / "00000.npz") as sample:
        found = onnxruntime.InferenceSession(model.SerializeToString()).run(taps, dict(sample))
    largest = {tap: np.abs(value[0].astype(np.float32)) for tap, value in zip(taps, found, strict=True)}
    assert largest["layers.1.inner"][0].max() > 20 * largest["layers.1.inner"][1:].max()
    assert largest["layers.0.inner"][0].max() < 3 * largest["layers.0.inner"][1:].max()
    channels = np.sort(largest["layers.0.norm2.out"].max(axis=0))
    assert channels[-1] > 4 * channels[len(channels) // 2]


def test_rows_of_a_weight_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight("w", (10, 6), 2.0, np.arange(10, dtype=np.float32), put_rows={7: np.ones(6, np.float32)})
    whole = np.concatenate(list(weight.blocks(0)))
    monkeypatch.setattr("benchmarks.scale.weights.ROWS_AT_ONCE", 13)
    pieces = list(weight.blocks(0))
    assert len(pieces) == 5
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole[7] == 1).all()
    assert (whole[0] == 0).all()


def test_sizes_are_those_that_their_names_say() -> None:
    assert SHAPES["llama-7b"].weight_bytes == pytest.approx(14.5e9, rel=0.01)
    assert SHAPES["llama-1b"].parameters == pytest.approx(1.1e9, rel=0.01)
    assert SHAPES["stack-2048x8"].weight_bytes == pytest.approx(1.66e9, rel=0.01)
    assert SHAPES["stack-2048x16"].weight_bytes == pytest.approx(3.3e9, rel=0.01)


def test_only_the_head_that_is_not_tied_is_a_weight_of_its_own() -> None:
    assert Weights(SMALL).head().shape == (64, 128)
    assert SMALL.parameters - replace(SMALL, tied=True).parameters == 64 * 128


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="33 tokens are more than the 32 positions"):
        make(SMALL, tmp_path, 1, 33)


def test_moments_are_spread_and_the_same_for_a_seed() -> None:
    found = moments(30, 1)
    assert [int(30 * one) for one in found] == list(range(30))
    assert found == moments(30, 1)
    assert found != moments(30, 2)


ENDED = Ended(0.5, "SIGKILL", 137, False, 0, (".x",), 3, 0, (), (), ("observe",), 2.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"code": 0}, ""),  # done before
        ({"code": 1}, "exit code 1"),
        ({"signal": "SIGINT", "code": 130}, "left .x"),
        ({"signal": "SIGTERM", "code": 143, "left": ()}, ""),
        ({"traceback": True}, "a traceback"),
        ({"orphans": 2}, "2 processes outlived it"),
        ({"again": 1}, "the second one ended with 1"),
        ({"differs": ("m.onnx",)}, "differs: m.onnx"),
        ({"strays": ("y",)}, "strays: y"),
        ({"reused": ()}, "3 results were kept and none was used"),
        ({"reused": (), "kept": 0}, ""),
    ],
)
def test_what_is_not_as_it_should_be_is_a_fault(change: dict[str, Any], said: str) -> None:
    found = list(replace(ENDED, **change).faults)
    assert (len(found) == 1 and said in found[0]) if said else not found


def test_artefacts_differ_by_what_is_no_time(tmp_path: Path) -> None:
    assert settled({"a": [{"seconds": 1, "b": 2}]}) == manifests.settled({"a": [{"seconds": 1, "b": 2}]})
    found = []
    for index, record in enumerate(({"a": 1, "timings": {"x": 1}}, {"a": 1, "timings": {}}, {"a": 2, "timings": {}})):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "m.manifest.json").write_text(json.dumps(record))
        (folder / "m.report.html").write_text(str(index))
        (folder / "m.qdq.onnx").write_bytes(b"same")
        found.append(artefacts(folder))
    assert found[0] == found[1] != found[2]
    assert found[0].keys() == {"m.manifest.json", "m.report.html", "m.qdq.onnx"}


@pytest.fixture
def standing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killing:
    """Moments of a program that keeps something, burns processor time and writes its artefacts."""
    code = (
        "import json, os, pathlib, sys, time\n"
        "kept = pathlib.Path(os.environ['QCOMPILER_CACHE'], 'v1', 'entries', 'aa', 'one')\n"
        "reused = {'observe': 1.0} if kept.exists() else {}\n"
        "kept.parent.mkdir(parents=True, exist_ok=True)\n"
        "kept.touch()\n"
        "until = time.process_time() + 0.3\n"
        "while time.process_time() < until: pass\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "out.write_bytes(b'artefact')\n"
        "out.with_name('model.manifest.json').write_text(json.dumps({'a': 1, 'reused': reused}))\n"
    )
    monkeypatch.setattr("benchmarks.scale.kills.RUN", code)
    found = Killing(["quantize"], tmp_path)
    found.undisturbed()
    return found


def test_one_that_is_killed_is_held_against_one_that_is_not(standing_in: Killing) -> None:
    found = standing_in.ended(0.6, signal.SIGKILL)
    assert (found.code, found.again, found.kept, found.reused) == (137, 0, 1, ("observe",))
    assert list(found.faults) == []


def test_one_that_had_written_everything_has_left_nothing(
    standing_in: Killing, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = benchmarks.scale.kills.RUN + "while not reused: pass\n"  # the first one is done and does not end
    monkeypatch.setattr("benchmarks.scale.kills.RUN", code)
    found = standing_in.ended(2.0, signal.SIGKILL)
    assert (found.code, found.again, found.left, found.reused) == (137, 0, (), ("observe",))


def test_what_runs_is_ended_when_the_benchmark_is(standing_in: Killing) -> None:
    process = standing_in._start()
    standing_in.close()
    assert process.returncode == -signal.SIGKILL
    standing_in.close()  # nothing runs any more


def test_what_others_leave_and_what_they_change_is_seen(standing_in: Killing, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, pathlib, sys\nout = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "out.write_bytes(b'another')\nout.with_name('draft').touch()\n"
        "out.with_name('model.manifest.json').write_text('{\"a\": 1, \"reused\": {}}')\n"
        "pathlib.Path(os.environ['TMPDIR'], 'rest').touch()\n"
    )
    monkeypatch.setattr("benchmarks.scale.kills.RUN", code)
    found = standing_in.ended(0.0, signal.SIGKILL)
    assert found.differs == ("model.qdq.onnx",)
    assert found.strays == ("draft", "rest (temporary)")


def test_processor_time_and_processes_are_found_by_what_they_inherited(tmp_path: Path) -> None:
    before = spent(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert spent(os.getpid()) > before
    assert spent(1 << 30) == 0
    assert started_with(f"TMPDIR={tmp_path / 'nobody has this'}") == []


def test_a_process_tells_what_it_wrote_and_gets_its_variables(tmp_path: Path) -> None:
    code = "import os; open(os.environ['WHERE'], 'wb').write(bytes(3_000_000))"
    extra = {"WHERE": str(tmp_path / "file")}
    used = process.run([sys.executable, "-c", code], folder=tmp_path, log=tmp_path / "log", extra=extra)
    assert used.code == 0
    assert (
        used.written_mb >= 3 or (tmp_path / "file").stat().st_size == 3_000_000
    )  # a file system in memory counts none


def test_flags_behind_the_dashes_go_to_every_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows: list[Row] = []

    def stand_in(row: Row, *_: object) -> Measured:
        rows.append(row)
        return _measured(row)

    monkeypatch.setattr("benchmarks.scale.measured.measured", stand_in)
    monkeypatch.setattr(command, "_report", lambda *_: 0)
    line = ["measure", str(tmp_path), "depth", "--row", "x4", "--as", "6GB", "--model", "m/model.onnx=d"]
    assert command.main([*line, "--", "--max-memory", "6GB"]) == 0
    assert [row.key for row in rows] == ["depth.x4 6GB", "entropy.m 6GB"]
    assert all(row.flags[-2:] == ("--max-memory", "6GB") for row in rows)
    assert rows[1].flags[:2] == ("--calibrator", "entropy")
    assert command.main([*line, "--", "--max-memory", "6GB"]) == 0  # what has a result is not measured again
    assert len(rows) == 2


def test_a_study_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command.main(["measure", str(tmp_path), "dept"])
    assert "no study is called dept: there are data, depth" in capsys.readouterr().err


def _measured(row: Row, cpu_s: float = 10.0, files: dict[str, str] | None = None) -> Measured:
    environment = {"onnx": "1", "onnxruntime": "2"}
    kept = {"reused": {"observe": 1.0, "observe.look": 1.0}, "environment": environment, "share": 0.9, "sqnr_db": 30.0}
    usage = Usage(2 * cpu_s, cpu_s, 300.0, 0, written_mb=5.0)
    plain = replace(usage, cpu_s=2.0, peak_mb=200.0)
    return Measured(row, plain, usage, files or {}, kept, "2026-01-01", {"cpu": "one"}, "abc")


def test_rows_are_read_back_and_become_tables_and_plots(tmp_path: Path) -> None:
    for row, cpu_s in zip(STUDIES["depth"], (10.0, 40.0, 170.0), strict=True):
        _measured(row, cpu_s).write(tmp_path / "rows" / f"{row.key}.json")
    found = report.read(tmp_path)
    assert [one.row for one in found["depth"]] == list(STUDIES["depth"])
    record = {"name": "SIGKILL", "cpu_s": 5.0, "flags": ["quantize", "/a/b.onnx"], "moments": [ENDED.to_json()]}
    (tmp_path / "kills.SIGKILL.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: begin -->\n<!-- results: end -->\nafter\n")
    report.main(tmp_path, page)
    text = page.read_text()
    assert "| x4 | 16 | 2.0 | 40.0 | 20.0 | 80 | 200 | 300 | 1.50 | 5 | 90.0 % | 30.0 | 1 stage |" in text
    assert "* x4 to x16: size × 4, CPU time × 4.25, peak memory × 1.00." in text
    assert "| SIGKILL | `quantize b.onnx` | 5.0 | 1 | 1 of 1 | 1 of 1 | 1 of 1 | 2.0 | 0 | 0 |" in text
    assert "<svg" in (tmp_path / "scale_depth.svg").read_text()


def test_workers_are_said_to_differ_where_their_files_do() -> None:
    one, two = (Row("workers", f"int8-{count}", "llama-tiny") for count in (1, 2))
    files = ({"q.onnx": "a", "q.manifest.json": "1"}, {"q.onnx": "a", "q.manifest.json": "2"}, {"q.onnx": "b"})
    same = [_measured(one, files=files[0]), _measured(two, files=files[1])]
    assert list(report.sameness(same)) == ["int8: the artefacts of 1 and 2 workers are the same, byte for byte."]
    other = [same[0], _measured(two, files=files[2])]
    assert "NOT the same" in next(report.sameness(other))


def test_the_kinds_of_studies_have_titles() -> None:
    assert {*STUDIES, "entropy"} == set(report.TITLES)
