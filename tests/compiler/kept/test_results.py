"""Results of stages between compilations: the same files, told, checked when they are read, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler import base
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.compile import CompileResult, quantize
from qcompiler.compiler.kept import results as kept
from qcompiler.compiler.kept.results import Results
from qcompiler.compiler.kept.store import Store
from qcompiler.planning.simulation import noise
from qcompiler.planning.simulation.simulator import Simulator
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared
from tests.kit.manifests import settled

KEPT = {"clean_up", "qfep", "observe", "check_data", "calibrate", "decide", "lower", "verify", "check_finite"}


def compiled(case: Case, cache: Path, name: str, **recipe: Any) -> CompileResult:
    return quantize(
        case.source, data=str(case.data), recipe=Recipe(**recipe), output=case.out / f"{name}.qdq.onnx", cache=cache
    )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "case").mkdir()
    return prepared(tmp_path / "case", "transformer")


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"precision": "int4-weight", "target": "onnxruntime"},
        {"precision": "int8-dynamic", "target": "onnxruntime"},
        {"precision": "fp8"},
    ],
    ids=lambda recipe: recipe.get("precision", "int8"),
)
def test_a_second_compilation_is_answered_and_leaves_the_same(
    case: Case, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    first = compiled(case, tmp_path / "cache", "m", **recipe)
    files = {path.name: path.read_bytes() for path in case.out.iterdir()}
    again = compiled(case, tmp_path / "cache", "m", **recipe)
    assert first.manifest["reused"] == {}
    assert again.manifest["reused"].keys() >= KEPT
    assert (case.out / "m.qdq.onnx").read_bytes() == files["m.qdq.onnx"]
    assert settled(again.manifest) == settled(first.manifest)


def test_another_process_is_answered_too(case: Case, tmp_path: Path) -> None:
    def run(name: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "qcompiler", "quantize", str(case.source), "--data", str(case.data), "--json"]
        command += ["-o", str(case.out / f"{name}.qdq.onnx")]
        done = subprocess.run(
            command,
            env={**os.environ, "QCOMPILER_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("observe: kept from an earlier run" in done.stderr) == (name == "b")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    first, again = run("a"), run("b")
    assert not first["reused"]
    assert again["reused"].keys() >= KEPT
    assert (case.out / "a.qdq.onnx").read_bytes() == (case.out / "b.qdq.onnx").read_bytes()


UP_TO_THE_GRAPH = KEPT - {"lower"} | {"lower.half"}


@pytest.mark.parametrize(
    ("precision", "sms", "reused"),
    [
        ("int8", ("sm75", "sm120"), UP_TO_THE_GRAPH),
        ("fp8", ("sm89", "sm120"), UP_TO_THE_GRAPH),
        ("int4-weight", ("sm80", "sm120"), {"clean_up", "observe", "weight_only"}),
        ("auto", ("sm89", "sm120"), {"clean_up", "observe", "calibrate", "smooth_quant"}),  # its costs are of a GPU
        ("auto", ("sm80", "sm86"), {"clean_up", "observe", "calibrate"}),
        ("auto", ("sm86", "sm89"), {"clean_up", "observe"}),  # FP8 is on offer now
    ],
)
def test_another_gpu_asks_again_only_what_it_changes(
    case: Case, tmp_path: Path, precision: str, sms: tuple[str, str], reused: set[str]
) -> None:
    first, again = (
        compiled(case, tmp_path / "cache", sm, precision=precision, target=f"tensorrt-rtx:{sm}") for sm in sms
    )
    assert again.manifest["reused"].keys() >= reused
    assert not again.manifest["reused"].keys() & {"lower"}
    fresh = compiled(case, tmp_path / "none", "fresh", precision=precision, target=f"tensorrt-rtx:{sms[1]}")
    assert (case.out / f"{sms[1]}.qdq.onnx").read_bytes() == (case.out / "fresh.qdq.onnx").read_bytes()
    assert settled(again.manifest)["plan"] == settled(fresh.manifest)["plan"]
    assert ("calibrate" in again.manifest["reused"]) == ("calibrate" in reused or precision == "int4-weight")
    assert first.manifest["target"] != again.manifest["target"]


def test_a_search_that_was_ended_goes_on_behind_its_last_run(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "WORTH_KEEPING", 0.0)
    asked: dict[str, Any] = {"min_sqnr": 36.0}
    fresh = compiled(case, tmp_path / "none", "fresh", **asked)
    run, runs = Simulator.run, list[int]()

    def ended(self: Simulator, *given: Any) -> Any:
        runs.append(1)
        if len(runs) == 20:
            raise KeyboardInterrupt
        return run(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Simulator, "run", ended)
        with pytest.raises(KeyboardInterrupt):
            compiled(case, tmp_path / "cache", "m", **asked)
    again = compiled(case, tmp_path / "cache", "m", **asked)
    assert again.manifest["reused"]["figure.trial"] > 0
    assert (case.out / "m.qdq.onnx").read_bytes() == (case.out / "fresh.qdq.onnx").read_bytes()
    plain = settled(fresh.manifest)
    assert {key: settled(again.manifest)[key] for key in ("plan", "safety", "rungs")} == {
        key: plain[key] for key in ("plan", "safety", "rungs")
    }


def test_where_a_metric_of_the_user_judges_only_the_rest_is_reused(case: Case, tmp_path: Path) -> None:
    code = tmp_path / "score.py"
    code.write_text(
        "import pathlib\n"
        "def score(run):\n"
        "    count = pathlib.Path(__file__).with_name('calls')\n"
        "    count.write_text(count.read_text() + '.' if count.exists() else '.')\n"
        "    return 1.0\n"
    )
    for name in ("m", "n"):
        found = compiled(case, tmp_path / "cache", name, metric=f"{code}:score", max_drop=0.1)
    assert found.manifest["reused"].keys() >= {"observe", "lower"}
    assert not found.manifest["reused"].keys() & {"decide", "verify", "calibrate"}


def test_other_data_or_another_model_is_another_question(case: Case, tmp_path: Path) -> None:
    compiled(case, tmp_path / "cache", "m")
    arrays = dict(np.load(case.data))
    np.savez(case.data, **{name: value * np.float32(1.5) for name, value in arrays.items()})
    found = compiled(case, tmp_path / "cache", "m")
    assert not found.manifest["reused"].keys() & {"observe", "calibrate", "decide", "verify"}


@pytest.mark.parametrize("kind", ["entries", "blobs"])
def test_what_is_damaged_is_made_again_with_a_warning(case: Case, tmp_path: Path, kind: str) -> None:
    first = compiled(case, tmp_path / "cache", "m")
    for path in (tmp_path / "cache").glob(f"v1/{kind}/??/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = compiled(case, tmp_path / "cache", "m")
    assert any("is made again" in text for text in again.manifest["warnings"])
    assert settled({**again.manifest, "warnings": []}) == settled({**first.manifest, "warnings": []})
    third = compiled(case, tmp_path / "cache", "m")
    assert third.manifest["reused"].keys() >= KEPT


def test_a_folder_that_cannot_be_written_is_told_once_and_nothing_else(case: Case, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    found = compiled(case, tmp_path / "cache", "m")
    told = [text for text in found.manifest["warnings"] if "results cannot be kept" in text]
    assert len(told) == 1
    assert (case.out / "m.qdq.onnx").exists()


CALLS: list[int] = []


def square(value: int) -> int:
    CALLS.append(value)
    return value * value


@stage()
def counted(run: Compilation, values: tuple[int, ...]) -> Done[int]:
    return Done(sum(run.item("square", (value,), partial(square, value)) for value in values))


def test_a_stage_that_is_asked_more_does_only_what_is_new(tmp_path: Path) -> None:
    CALLS.clear()
    for values in ((1, 2), (1, 2, 3), (3, 2)):
        run = Compilation(cache=Results(Store(tmp_path, 1 << 20), pytest.fail))
        assert run(counted, values) == sum(value * value for value in values)
    assert CALLS == [1, 2, 3]


def squaring(offset: int) -> Callable[[int], int]:
    return lambda value: square(value) + offset


@stage()
def listed(run: Compilation, offset: int, values: tuple[int, ...]) -> Done[tuple[int, ...]]:
    return Done(tuple(run.each("squares", squaring, (offset,), iter(values))))


def test_items_that_were_done_are_not_done_again_and_all_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CALLS.clear()
    monkeypatch.setattr(base, "WORTH_KEEPING", 0.0)
    for offset, values in ((1, (1, 2)), (1, (3, 1, 4, 2, 5)), (1, (5, 4)), (2, (1,))):
        run = Compilation(cache=Results(Store(tmp_path, 1 << 20), pytest.fail))
        assert run(listed, offset, values) == tuple(value * value + offset for value in values)
    assert CALLS == [1, 2, 3, 4, 5, 1]


def test_items_that_took_no_time_are_not_worth_keeping(tmp_path: Path) -> None:
    CALLS.clear()
    for values in ((1, 2), (1, 2, 3)):
        run = Compilation(cache=Results(Store(tmp_path, 1 << 20), pytest.fail))
        run(listed, 1, values)
    assert CALLS == [1, 2, 1, 2, 3]


def test_another_version_of_what_computes_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    for machine in ("one", "other", "one"):
        monkeypatch.setattr(kept, "computing", lambda machine=machine: machine)
        Compilation(cache=Results(Store(tmp_path, 1 << 20), pytest.fail))(counted, (1,))
    assert CALLS == [1, 1]


def test_arrays_that_stages_share_lie_there_once(case: Case, tmp_path: Path) -> None:
    compiled(case, tmp_path / "cache", "m")
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("v1/blobs/??/*")]
    assert sum(sizes) < 4 * case.source.stat().st_size
    shutil.rmtree(tmp_path / "cache")
    compiled(case, tmp_path / "cache", "m")  # it may go at any time
