"""The replay: two runs of a case are equal, and whatever differs is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.replay import child, compare
from benchmarks.replay.__main__ import main
from benchmarks.replay.cases import CASES, SUBJECTS

NAMES = ("cnn-fp16", "cnn-fp8-old-gpu")
DONE, REFUSED = (next(case for case in CASES if case.name == name) for name in NAMES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "first"
    assert child.record(DONE, out) == "done"
    assert child.record(REFUSED, out) == "EngineError 6"
    return out


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "second"))


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf8")


def test_every_case_has_a_name_of_its_own_and_a_model() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.model for case in CASES} == set(SUBJECTS)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_model_and_its_data_are_the_same_each_time(name: str) -> None:
    first, second = SUBJECTS[name](), SUBJECTS[name]()
    assert first.proto == second.proto
    for one, other in zip(first.feeds, second.feeds, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(value, other[key]) for key, value in one.items())


def test_a_second_run_is_equal(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in (DONE, REFUSED):
        child.record(case, tmp_path / "again")
    assert main(["compare", str(recorded), str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.endswith("2 of 2 cases are equal\n")


def test_times_stamps_and_older_names_are_no_difference(recorded: Path, copied: Path) -> None:
    path = copied / DONE.name / "m.manifest.json"
    data = json.loads(path.read_text(encoding="utf8"))
    old = {new: name for name, new in compare.NEW_STAGES.items()}
    timings = {old.get(stage, stage): 99.0 for stage in data["timings"]}
    data |= {"schema": 1, "qcompiler": "9", "timings": timings, "peak_memory_mb": 1.0, "estimate": None}
    data["verification"]["seconds"] = 77.0
    renamed = {"smoothing" if key == "smooth_quant" else key: value for key, value in data.items()}
    path.write_text(json.dumps(renamed), encoding="utf8")
    assert main(["compare", str(recorded), str(copied)]) == 0


def manifest_figure(folder: Path) -> None:
    edited(folder / DONE.name / "m.manifest.json", '"feeds": 12', '"feeds": 12.0')


def manifest_order(folder: Path) -> None:
    path = folder / DONE.name / "m.manifest.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text(encoding="utf8")).items()))), encoding="utf8")


def stage_gone(folder: Path) -> None:
    edited(folder / DONE.name / "m.manifest.json", '"load": ', '"loaded": ')


def reason(folder: Path) -> None:
    edited(folder / DONE.name / "plan.json", '"precision": "fp16"', '"precision": "fp32"')


def weight(folder: Path) -> None:
    path = folder / DONE.name / "m.qdq.onnx"
    proto = onnx.load(path)
    held = next(one for one in proto.graph.initializer if one.name == "head.w")
    values = numpy_helper.to_array(held).copy()
    values[0, 0] += 1
    held.CopyFrom(numpy_helper.from_array(values, held.name))
    onnx.save(proto, path)


def refusal(folder: Path) -> None:
    edited(folder / REFUSED.name / "outcome.json", "sm86", "sm80")


def file_gone(folder: Path) -> None:
    (folder / DONE.name / "plan.json").unlink()


def case_gone(folder: Path) -> None:
    shutil.rmtree(folder / REFUSED.name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (manifest_figure, "m.manifest.json.data.feeds: 12 → 12.0"),
        (manifest_order, "m.manifest.json: keys in another order"),
        (stage_gone, "m.manifest.json.timings.loaded: only in the second"),
        (reason, 'plan.json.decisions[0].precision: "fp16" → "fp32"'),
        (weight, "m.qdq.onnx.weights.head.w: "),
        (refusal, 'outcome.json.text: "sm86 cannot'),
        (file_gone, "plan.json: only in "),
        (case_gone, "only in "),
    ],
)
def test_what_differs_is_named(
    change: Callable[[Path], None], says: str, recorded: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied)
    assert main(["compare", str(recorded), str(copied)]) == 1
    out = capsys.readouterr().out
    assert f"         {says}" in out
    assert out.count("DIFFERS") == 1
    assert out.endswith("1 of 2 cases are equal\n")


def test_only_the_cases_that_were_asked_for_are_compared(recorded: Path, copied: Path) -> None:
    refusal(copied)
    assert main(["compare", str(recorded), str(copied), "--only", DONE.name]) == 0
    assert main(["compare", str(recorded), str(copied), "--only", "nothing-like-it"]) == 2


def test_an_old_result_is_not_taken_for_a_new_one(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", str(copied)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_package_of_another_tree_is_not_taken_for_that_of_this_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree").mkdir()
    assert main(["record", str(tmp_path / "out"), "--tree", str(tmp_path / "tree")]) == 1
    assert "is not in" in capfd.readouterr().err
