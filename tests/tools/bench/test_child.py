"""The process that holds a model, spoken to line by line as its other end does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.kit import decoder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process says to four tasks, two of which cannot be done."""
    folder = tmp_path_factory.mktemp("child")
    onnx.save(decoder.decoder(cache=False, layers=1), folder / "m.onnx")
    np.savez(folder / "tokens.npz", tokens=decoder.tokens(2, 6))
    np.savez(folder / "wrong.npz", input_ids=np.zeros((1, 4), np.float32))
    opened = {"task": "open", "engine": "onnxruntime", "provider": "cpu", "threads": 1}
    tasks = [
        {**opened, "model": str(folder / "none.onnx")},
        {**opened, "model": str(folder / "m.onnx")},
        {"task": "infer", "feeds": str(folder / "wrong.npz"), "count": 1},
        {"task": "write", "feeds": str(folder / "tokens.npz"), "prompt": 4, "count": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "qcompiler.tools.bench.child"],
        input="".join(json.dumps(task) + "\n" for task in tasks),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_task_has_one_answer_and_the_end_of_the_tasks_is_the_end(answers: list[dict[str, Any]]) -> None:
    assert len(answers) == 4


def test_a_failure_has_the_name_of_its_error_and_the_next_task_is_done(answers: list[dict[str, Any]]) -> None:
    assert answers[0]["error"] == "ModelError"
    assert "none.onnx" in answers[0]["text"]
    assert answers[2]["error"] == "DataError"
    assert "error" not in answers[1]
    assert "error" not in answers[3]


def test_an_opened_model_is_described(answers: list[dict[str, Any]]) -> None:
    assert answers[1]["inputs"]["input_ids"] == ["int64", ["batch", "sequence_length"]]
    assert answers[1]["outputs"]["logits"][0] == "float32"
    assert answers[1]["where"] == "CPUExecutionProvider"
    assert answers[1]["peak_memory_mb"] > 1


def test_a_text_is_written_token_by_token(answers: list[dict[str, Any]]) -> None:
    assert answers[3]["positions"] == [3, 4]
    assert np.shape(answers[3]["chosen"]) == (2, 2)
    assert (len(answers[3]["prefill"]), len(answers[3]["decode"])) == (1, 1)
