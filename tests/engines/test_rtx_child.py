"""The process that runs TensorRT-RTX, spoken to line by line as its parent does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import graphs

CHILD = "qcompiler.engines.rtx_child"


def told(task: dict[str, Any], *, closed: bool = False) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events; standard input stays open until the process has ended, or is closed behind the task."""
    process = subprocess.Popen(
        [sys.executable, "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        if closed:
            process.stdin.close()
        events = [json.loads(line) for line in process.stdout]
    return process.returncode, events


def last(task: dict[str, Any]) -> dict[str, Any]:
    code, events = told(task)
    assert code == 0
    return events[-1]


def check(model: Path) -> dict[str, Any]:
    return {"task": "check", "model": str(model)}


def build(model: Path, **more: Any) -> dict[str, Any]:
    output = str(model.with_suffix(".engine"))
    return {"task": "build", "model": str(model), "output": output, "sms": ["sm89"], "profiles": [], **more}


def test_a_check_says_version_progress_and_verdict_and_nothing_else(tmp_path: Path) -> None:
    code, events = told(check(graphs.matmul().save(tmp_path / "m.onnx")))
    assert code == 0
    assert [one["event"] for one in events if one["event"] != "log"] == ["version", "progress", "result"]
    assert events[-1] == {"event": "result", "accepted": True, "diagnostics": []}
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_diagnostics_name_the_node(tmp_path: Path) -> None:
    found = last(check(graphs.shifted().save(tmp_path / "m.onnx")))
    assert not found["accepted"]
    assert (found["diagnostics"][0]["node"], found["diagnostics"][0]["op"]) == ("a_q", "QuantizeLinear")


def test_an_empty_file_is_not_accepted(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    found = last(check(tmp_path / "m.onnx"))
    assert not found["accepted"]
    assert found["diagnostics"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"sms": ["sm999"]}, "sm"), ({"profiles": [{"shapes": {"z": [[1], [1], [1]]}}]}, "profile")],
    ids=["unknown SM", "unknown input"],
)
def test_what_cannot_be_built_is_refused_with_its_reason(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = last(build(graphs.matmul().save(tmp_path / "m.onnx"), **change))
    assert (found["event"], found["reason"]) == ("refused", reason)
    assert not (tmp_path / "m.engine").exists()


def test_an_output_that_cannot_be_written_is_told_with_its_number(tmp_path: Path) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    found = last(build(model, output=str(tmp_path / "none" / "m.engine")))
    assert (found["event"], found["reason"], found["errno"]) == ("refused", "output", 2)


def test_without_its_parent_it_removes_what_is_unfinished_and_ends(tmp_path: Path) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    (tmp_path / "m.engine").write_bytes(b"unfinished")
    code, events = told(build(model), closed=True)
    assert code == 3
    assert not (tmp_path / "m.engine").exists()
    assert "result" not in [one["event"] for one in events]
