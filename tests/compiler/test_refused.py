"""What a missed gate leaves behind: a report, a manifest and a document on stdout, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompiler.cli.main import main
from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.compile import quantize
from qcompiler.compiler.refused import told
from qcompiler.errors import AccuracyError, EngineError
from qcompiler.recipe.recipe import Recipe
from qcompiler.report import manifest
from tests.kit.cases import Case, prepared

FAILED = ["m.failed.manifest.json", "m.failed.report.html"]


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


def command(case: Case, *options: str) -> int:
    return main(["quantize", str(case.source), "--data", str(case.data), "-o", str(case.out / "m.qdq.onnx"), *options])


def test_a_missed_gate_leaves_report_manifest_and_json_with_all_tries(
    conv: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(conv, "--min-sqnr", "150", "--json", "--quiet") == 5
    out, err = capfd.readouterr()
    assert conv.left() == FAILED
    record = manifest.read(conv.out / FAILED[0])
    document = json.loads(out)
    assert document == {"error": document["error"], "code": 5, "manifest": record}
    assert document["error"] in err
    assert "is in 'm.failed.report.html'" in document["error"]
    assert record["verdict"]["verdict"] == "broken"
    assert record["missed"]["code"] == 5
    assert "at least 150 dB was asked for" in record["missed"]["error"]
    goals = [one["goal_db"] for one in record["tries"] if one["goal_db"] is not None]
    assert goals == sorted(goals)
    assert all(one["missed"] for one in record["tries"])
    assert record["plan"]
    page = (conv.out / FAILED[1]).read_text(encoding="utf8")
    assert page.index("Broken: ") < page.index('class="tiles"')
    assert "Not accepted" in page


def test_the_missed_manifest_replays_and_success_removes_what_a_miss_left(conv: Case) -> None:
    conv.out.mkdir()
    for name in ("m.qdq.onnx", "m.failed.html", "other.failed.manifest.json"):
        (conv.out / name).write_bytes(b"mine")
    assert command(conv, "--min-share", "1", "--keep", "C1", "--quiet") == 5
    assert conv.left() == sorted([*FAILED, "m.failed.html", "m.qdq.onnx", "other.failed.manifest.json"])
    assert (conv.out / "m.qdq.onnx").read_bytes() == b"mine"
    again = manifest.replay(conv.out / FAILED[0])
    assert (again.min_share, again.keep) == (1.0, ("C1",))
    assert command(conv, "--quiet") == 0
    assert not set(FAILED) & set(conv.left())
    assert (conv.out / "other.failed.manifest.json").read_bytes() == b"mine"
    assert (conv.out / "m.failed.html").read_bytes() == b"mine"


def shares(case: Case, says: str, **recipe: Any) -> list[float]:
    """Of the tries of a compile that misses its gate."""
    with pytest.raises(AccuracyError, match=says) as caught:
        quantize(case.source, data=str(case.data), recipe=Recipe(min_sqnr=100, **recipe), output=case.out / "m.onnx")
    assert caught.value.manifest is not None
    return [one["share"] for one in caught.value.manifest["tries"]]


def test_a_gate_on_the_share_sets_the_floor_of_the_safety_net(conv: Case) -> None:
    floored, free = shares(conv, "at least 100 dB", min_share=0.5), shares(conv, "A gate took all of it back")
    assert min(floored) >= 0.5
    assert min(free) < 0.5
    assert len(floored) <= 2  # at the floor a higher goal changes nothing


def test_nothing_quantized_is_exit_5_unless_broken_is_allowed(conv: Case, capfd: pytest.CaptureFixture[str]) -> None:
    for precision in ("int8", "int8-weight"):
        assert command(conv, "--precision", precision, "--keep", ".", "--quiet") == 5
        assert f"nothing of what was asked for was quantized ({precision})" in capfd.readouterr().err
    assert command(conv, "--keep", ".", "--allow-broken", "--quiet") == 0
    shown = capfd.readouterr().out
    assert shown.index("Broken: nothing of what was asked for") < shown.index("compiled to")
    assert "m.qdq.onnx" in conv.left()


@stage()
def measured(run: Compilation) -> Done[None]:
    return Done(None, {"verdict": {"verdict": "doubtful", "reasons": ["3 samples"]}})


def test_an_earlier_verdict_keeps_its_reasons_and_other_errors_leave_nothing(tmp_path: Path) -> None:
    paths, run = Paths.of(tmp_path / "new" / "m.qdq.onnx", build=False), Compilation()
    run(measured)
    with pytest.raises(EngineError), told(run, paths, Recipe()):
        raise EngineError("no GPU")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AccuracyError, match=r"^too bad\. What was tried is in"), told(run, paths, Recipe()):
        raise AccuracyError("too bad.")
    verdict = json.loads(paths.failed_manifest.read_text(encoding="utf8"))["verdict"]
    assert verdict == {"verdict": "broken", "reasons": ["too bad.", "3 samples"]}


def test_where_nothing_can_be_written_the_gate_is_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    paths = Paths.of(tmp_path / "file" / "m.qdq.onnx", build=False)
    expected = r"too bad\. What was tried is not on the disk: cannot write"
    with pytest.raises(AccuracyError, match=expected), told(Compilation(), paths, Recipe()):
        raise AccuracyError("too bad.")
