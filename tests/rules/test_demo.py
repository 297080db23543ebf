"""The demonstration: what it draws can be read, what it sums up is what the manifest says."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import lines, run
from qcompiler.engines.audit import Audit, Finding, Kind
from qcompiler.verification.compare import Verification
from qcompiler.verification.metric import Score
from tests.kit import models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of build/demo."""
    monkeypatch.setattr(lines, "FOLDER", tmp_path)
    lines.characters.cache_clear()
    return tmp_path


def test_drawn_lines_are_read_from_disk_as_they_were_written(folder: Path) -> None:
    model = models.get("ppocr-rec")
    run.write_characters(model.path, folder / "characters.txt")
    run.write_lines(folder / "heldout", 10, half=1)
    read = model.float_run()
    assert lines.accuracy(lambda feeds: [read(feeds)[0]]) > 0.9
    assert lines.accuracy(lambda feeds: [-read(feeds)[0]]) < 0.5


def test_calibration_ends_with_a_smaller_batch_and_can_start_again(folder: Path) -> None:
    run.write_lines(folder / "calibration", 6, half=0)
    shapes = [feeds["x"].shape for feeds in lines.calibration()]
    assert shapes == [(4, 3, 48, 640), (2, 3, 48, 640)]
    assert [feeds["x"].shape for feeds in lines.calibration()] == shapes


def test_the_two_halves_share_no_line(folder: Path) -> None:
    texts = []
    for half in (0, 1):
        run.write_lines(folder, 120, half=half)
        texts.append(set((folder / "labels.txt").read_text(encoding="utf8").splitlines()))
    assert not texts[0] & texts[1]


def test_summary_has_the_figures_and_every_mismatch() -> None:
    finding = Finding(Kind.NOT_CONFIRMED, "conv_7", "promised int8, but compiled to float")
    verification = Verification(1, (), score=Score("accuracy", 0.9854, 0.9811, True))
    manifest = {
        "verification": verification.to_json(),
        "audit": Audit(("conv_1",), (finding,), promised=2).to_json(),
        "macs": {"quantized_share": 0.7654},
        "engine": {"bytes": 9_000_000},
        "files": {"qdq": {"bytes": 4_000_000}},
        "timings": {"load": 0.01, "decide": 12.34},
    }
    text = run.summary(manifest, 11_000_000, 61.0)
    for figure in ("0.9854", "0.9811", "76.5%", "1 of 2", "11.0 MB", "4.0 MB", "9.0 MB", "61 in all", "decide 12.3"):
        assert figure in text
    assert "conv_7: promised int8, but compiled to float" in text
    assert "load" not in text
