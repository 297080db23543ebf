from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import measure, peers, process, report
from benchmarks.children.common import Feeds, Samples, reader
from benchmarks.children.evaluate import Noise
from benchmarks.children.order import Order
from benchmarks.children.write_samples import free_axes, single
from benchmarks.results import Outcome, Run, machine
from benchmarks.subjects import SUBJECTS, Cell, matrix

PLAIN = Run(wall_s=3.0, cpu_s=4.0, peak_mb=100.0, work_s=2.0, versions={"onnxruntime": "1"})
EVALUATION = {
    "metric_name": "accuracy",
    "higher_is_better": True,
    "metric_float": 0.5,
    "metric": 0.25,
    "sqnr_db": {"a": 20.0, "b": 12.5},
    "latency": {"float_ms": 2.0, "quantized_ms": 1.0, "ratio": 0.5},
    "int8_share": 0.75,
    "onnxruntime": "1",
}


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    folder = tmp_path / "samples"
    folder.mkdir()
    for index in range(3):
        np.savez(folder / f"{index:05d}.npz", x=np.full((1, 2), index, np.float32))
    return Samples(folder, 3)


def outcome(subject: str = "ort-minmax", **changes: Any) -> Outcome:
    run = Run(wall_s=9.0, cpu_s=8.0, peak_mb=300.0, work_s=6.0, versions={"onnxruntime": "1"})
    cell = Cell("magika", subject, 64)
    made = Outcome(cell, machine(), "2026-01-02T03:04:05+00:00", 0.5, [PLAIN, PLAIN], [run], 8_000_000, 2_000_000)
    return replace(made, **{"evaluation": EVALUATION, **changes})


def test_batches_become_samples_of_batch_one() -> None:
    feeds = {"a": np.arange(6).reshape(3, 2), "b": np.arange(3)}
    rows = list(single(feeds, free_axes([("a", ["batch", 2]), ("b", ["batch"])])))
    assert [row["a"].shape for row in rows] == [(1, 2)] * 3
    assert np.array_equal(np.concatenate([row["b"] for row in rows]), feeds["b"])


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({"a": [3, 2], "b": ["batch"]}, id="fixed"),
        pytest.param({"a": ["batch", 2], "b": ["time"]}, id="two names"),
        pytest.param({"a": ["batch", 2], "b": []}, id="scalar"),
    ],
)
def test_feeds_whose_first_axis_is_no_batch_stay_whole(shapes: dict[str, list[int | str | None]]) -> None:
    feeds = {"a": np.zeros((3, 2)), "b": np.zeros(3 if shapes["b"] else ())}
    assert list(single(feeds, free_axes(shapes.items()))) == [feeds]


def test_reader_rewinds_and_takes_stretches(samples: Samples) -> None:
    stream = reader(samples, object)

    def rest() -> list[float]:
        return [float(feeds["x"][0, 0]) for feeds in iter(stream.get_next, None)]

    assert rest() == [0, 1, 2]
    assert rest() == []
    stream.rewind()
    assert rest() == [0, 1, 2]
    stream.set_range(1, 2)
    assert rest() == [1]


def test_too_few_samples_are_an_error_and_not_a_smaller_benchmark(samples: Samples) -> None:
    with pytest.raises(ValueError, match="has 3 samples; 4 were asked for"):
        Samples(samples.files[0].parent, 4)


def test_order_survives_its_file(tmp_path: Path) -> None:
    order = Order(Path("m.onnx"), Path("s"), 5, Path("o"), Path("a"), {"method": "max"})
    order.write(tmp_path / "order.json")
    assert Order.read(tmp_path / "order.json") == order


def test_sqnr_is_summed_over_feeds_and_skips_integers() -> None:
    def reference(feeds: Feeds) -> list[Any]:
        return [feeds["x"], np.array([1])]

    def judged(feeds: Feeds) -> list[Any]:
        return [feeds["x"] * np.float32(1.1), np.array([2])]

    noise = Noise(["y", "class"], reference, judged)
    for scale in (1, 100):
        noise({"x": np.full(4, scale, np.float32)})
    assert noise.sqnr_db() == {"y": pytest.approx(20, abs=1e-4)}


def test_memory_of_children_counts(tmp_path: Path) -> None:
    hungry = "import time; a = bytearray(80 << 20); time.sleep(0.3)"
    parent = f"import subprocess, sys; a = bytearray(40 << 20); subprocess.run([sys.executable, '-c', {hungry!r}])"
    usage = process.run([sys.executable, "-c", parent], folder=tmp_path, log=tmp_path / "log")
    assert usage.code == 0
    assert usage.peak_mb > 120
    assert usage.wall_s > 0.3


def test_a_process_over_the_limit_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_S", 0.2)
    usage = process.run([sys.executable, "-c", "import time; time.sleep(60)"], folder=tmp_path, log=tmp_path / "log")
    assert usage.code == -9
    assert "stopped: over" in usage.error
    assert usage.wall_s < 30


def test_the_measuring_process_stays_small() -> None:
    code = "import sys, benchmarks.__main__; sys.exit('numpy' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=peers.ROOT, check=True)


def test_a_rewritten_input_is_reported_and_the_original_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"float model")

    def rewriting(environment: str, child: str, order: Order, folder: Path) -> Run:
        order.model.write_bytes(b"something else")
        return PLAIN

    monkeypatch.setattr(measure, "_child", rewriting)
    run = measure._quantize(SUBJECTS["modelopt"], model, tmp_path, 1, tmp_path)
    assert run.remark == "rewrote its input file"
    assert model.read_bytes() == b"float model"


def test_ratios_are_to_the_passes_around_a_run() -> None:
    later = replace(PLAIN, wall_s=6.0, work_s=4.0, peak_mb=100.0)
    one = outcome(limits=[PLAIN, later])
    assert one.like_for_like() == pytest.approx(9 / 4.5)
    assert one.to_pass() == pytest.approx(9 / 3)
    assert one.work_to_pass() == pytest.approx(6 / 3)
    assert one.peak_ratio() == pytest.approx(3)
    assert outcome("ours", runs=[replace(one.runs[0], work_s=None)]).work_to_pass() is None


def test_outcome_survives_its_file(tmp_path: Path) -> None:
    outcome().write(tmp_path / "cell.json")
    assert Outcome.read(tmp_path / "cell.json") == outcome()


def test_tables_have_a_cell_for_every_column_also_for_failures() -> None:
    failed = outcome("nncf", runs=[replace(PLAIN, error="ValueError: no | idea")], evaluation=None)
    broken = outcome("modelopt", evaluation={"error": "INVALID_GRAPH"})
    large = outcome(cell=Cell("magika", "ort-minmax", 512, judged=False), evaluation=None)
    text = report.markdown([outcome(), failed, broken, large])
    rows = [line for line in text.splitlines() if line.startswith(("| onnx", "| NNCF", "| Model Optimizer"))]
    assert {row.count("|") for row in rows} == {len(report.COLUMNS) + 1}
    assert len(rows) == 3
    assert "NNCF (default): ValueError: no | idea" in text
    assert "the result does not run: INVALID_GRAPH" in text
    assert "12.5 | 0.2500 | 75% | 0.50 | 2.0" in text
    assert "| magika | 512 |" in text


def test_prose_around_the_tables_stays(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf8")
    outcome().write(tmp_path / "results" / "cell.json")
    assert report.replace_results(document, tmp_path / "results") == 1
    text = document.read_text(encoding="utf8")
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "\nold\n" not in text
    document.write_text("no marks", encoding="utf8")
    with pytest.raises(ValueError, match="lacks the lines"):
        report.replace_results(document, tmp_path / "results")


def test_the_matrix_names_each_cell_once_and_only_known_quantizers() -> None:
    cells = matrix()
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(SUBJECTS[cell.subject].peer in ("", *peers.PEERS) for cell in cells)
