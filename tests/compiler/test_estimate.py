"""What a compilation is said to take: runs that are counted, room that is not there, what is told and recorded.

Runs are counted and not timed: how long one takes is the machine's business.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.compiler import estimate as estimating
from qcompiler.errors import UsageError
from qcompiler.planning.simulation.in_parts import InParts
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.session import Session
from qcompiler.support.outlook import Outlook
from qcompiler.support.progress import Silent
from qcompiler.target import DType
from tests.kit.cases import Case, prepared, transformer
from tests.kit.rewrite import model


def tower(depth: int, width: int) -> onnx.ModelProto:
    """So many convolutions with ReLU, and a head."""
    rng = np.random.default_rng(depth)
    weights: dict[str, Any] = {"head": rng.standard_normal((width, 10)).astype(np.float32)}
    nodes, last, channels = [], "x", 3
    for at in range(depth):
        shape = (width, channels, 3, 3)
        weights[f"w{at}"] = (rng.standard_normal(shape) / np.sqrt(channels * 4.5)).astype(np.float32)
        nodes += [("Conv", f"{last} w{at}", f"c{at}", {"pads": [1] * 4}), ("Relu", f"c{at}", f"r{at}")]
        last, channels = f"r{at}", width
    tail = [("GlobalAveragePool", last, "p"), ("Flatten", "p", "f"), ("MatMul", "f head", "y")]
    return model(*nodes, *tail, inputs={"x": ("n", 3, 12, 12)}, weights=weights)


MODELS = {
    "a block of attention": (transformer(), (16, 64)),
    "a small tower": (tower(3, 16), (3, 12, 12)),
    "a high tower": (tower(16, 24), (3, 12, 12)),
}


class Counting(Silent):
    """Counts runs of all sessions from the estimate on."""

    def __init__(self) -> None:
        self.runs = 0
        self.before = 0
        self.text = ""

    def expect(self, text: str, outlook: Outlook) -> None:
        """See `Progress`."""
        self.before, self.runs, self.text = self.runs, 0, text


class Compiled(NamedTuple):
    manifest: Any
    shown: Counting


def compiled(
    folder: Path, source: onnx.ModelProto, data: Any, monkeypatch: pytest.MonkeyPatch, **recipe: Any
) -> Compiled:
    onnx.save(source, folder / "m.onnx")
    shown, run, in_parts = Counting(), Session.run, InParts.run

    def counted(self: Session, feeds: Any) -> Any:
        shown.runs += 1
        return run(self, feeds)

    def counted_once(self: InParts, *given: Any, **options: Any) -> Any:
        before = shown.runs
        found = in_parts(self, *given, **options)
        shown.runs = before + 1  # however many parts it has
        return found

    monkeypatch.setattr(Session, "run", counted)
    monkeypatch.setattr(InParts, "run", counted_once)
    done = qcompiler.quantize(
        folder / "m.onnx", data=data, recipe=Recipe(**recipe), output=folder / "out.onnx", progress=shown
    )
    return Compiled(done.manifest, shown)


def samples(count: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((1, *shape)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("count", [12, 40])
@pytest.mark.parametrize("name", MODELS)
def test_as_many_runs_as_were_foreseen_within_a_factor_of_two(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, shape = MODELS[name]
    # One sample tells how much noise there is, and not whether that is much beside what varies: a search that this
    # decides about is not foreseen
    goal = SafetyTable(target_sqnr_db=10)
    done = compiled(tmp_path, source, samples(count, shape), monkeypatch, safety=goal)
    told = done.manifest["estimate"]["runs"]
    assert told / 2 < done.shown.runs < 2 * told


@pytest.mark.parametrize(
    "recipe",
    [{"calibrator": "minmax"}, {"precision": "fp16"}, {"precision": "int8-weight"}, {"verify_samples": 0}],
    ids=str,
)
def test_what_is_asked_for_changes_what_is_foreseen(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = compiled(tmp_path, transformer(), samples(20, (16, 64)), monkeypatch, **recipe)
    told = done.manifest["estimate"]["runs"]
    assert told / 2 < done.shown.runs < 2 * told


METRIC = """
import numpy as np

FEEDS = np.random.default_rng(3).standard_normal((24, 1, 16, 64)).astype(np.float32)
asked = []

def score(run):
    asked.append(1)
    return float(np.mean([run({"x": one})[0].std() for one in FEEDS]))
"""


def test_a_metric_is_foreseen_and_its_float_score_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.py").write_text(METRIC, encoding="utf8")
    wanted = {"metric": f"{tmp_path / 'judge.py'}:score", "max_drop": 0.5}
    done = compiled(tmp_path, transformer(), samples(20, (16, 64)), monkeypatch, **wanted)
    told, alone = done.manifest["estimate"], compiled(tmp_path, transformer(), samples(20, (16, 64)), monkeypatch)
    assert told["runs"] / 2 < done.shown.runs < 2 * told["runs"]
    assert told["runs"] > alone.manifest["estimate"]["runs"] + 24  # what judges runs it on all, whatever chose


def test_few_runs_are_spent_on_the_estimate_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = compiled(tmp_path, transformer(), samples(40, (16, 64)), monkeypatch)
    assert done.shown.before < done.shown.runs / 5


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepared(tmp_path_factory.mktemp("block"), "transformer")


def quantized(case: Case, *, data: bool = True, **recipe: Any) -> Any:
    done = qcompiler.quantize(
        case.source, data=str(case.data) if data else None, recipe=Recipe(**recipe), output=case.out / "m.onnx"
    )
    return done.manifest


def test_the_manifest_has_it_beside_what_it_took(block: Case) -> None:
    manifest = quantized(block)
    told = manifest["estimate"]
    assert set(told) == {"seconds", "memory_bytes", "disk_bytes", "runs", "stages"}
    assert told["seconds"] == pytest.approx(
        sum(told["stages"].values()) + sum(manifest["timings"][name] for name in ("load", "clean_up", "estimate")),
        abs=0.2,
    )
    assert list(told["stages"])[:2] == ["qfep", "observe"]
    assert told["memory_bytes"] / 2 < manifest["peak_memory_mb"] * (1 << 20) < 2 * told["memory_bytes"]
    written = sum(path.stat().st_size for path in block.out.iterdir())
    assert told["disk_bytes"] / 2 < written < 2 * told["disk_bytes"]


def test_without_data_nothing_is_run_and_nothing_is_said(block: Case) -> None:
    assert quantized(block, data=False, precision="int8-weight", high_precision="fp32")["estimate"] is None


def test_it_is_told_in_a_few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = compiled(tmp_path, transformer(), samples(8, (16, 64)), monkeypatch)
    assert done.shown.text.startswith(("about ", "under "))
    assert done.shown.text.endswith(" of disk")


class Usage(NamedTuple):
    free: int


def test_a_disk_without_room_is_refused_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000))
    with pytest.raises(UsageError, match=r"has 1 kB of room.*at least: .*another output with -o") as refused:
        compiled(tmp_path, transformer(), samples(8, (16, 64)), monkeypatch)
    assert str(tmp_path) in str(refused.value)
    assert not list(tmp_path.glob("out*"))


def test_a_disk_that_may_be_too_small_is_warned_of(block: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = quantized(block)["estimate"]["disk_bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(usual - 1))
    (text,) = (text for text in quantized(block)["warnings"] if "of room" in text)
    assert "may take" in text


def test_memory_that_is_not_there_is_warned_of(block: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "available_memory", lambda: 0)
    (text,) = (text for text in quantized(block)["warnings"] if "of memory" in text)
    assert "--batch 1" in text
    monkeypatch.setattr(estimating, "available_memory", lambda: None)
    assert not any("of memory" in text for text in quantized(block)["warnings"])


@pytest.mark.parametrize(
    ("recipe", "share"),
    [({"precision": "int8"}, 1 / 4), ({"precision": "fp16"}, 1 / 2), ({"precision": "int4-weight"}, 1 / 8)],
    ids=str,
)
def test_what_is_written_goes_by_the_types_of_the_weights(recipe: dict[str, Any], share: float, block: Case) -> None:
    from tests.kit.subjects import before

    standing = before("observe", block, **recipe)
    least, usual = estimating.disk_of(standing.subject, standing.asked)
    every = estimating.weight_bytes(standing.subject.model)
    assert least == pytest.approx(every * share, rel=0.01)
    assert least < usual < every + (1 << 17)


def test_high_precision_has_a_size_for_every_type() -> None:
    assert {DType.FP32, DType.FP16, DType.BF16} == set(estimating._BYTES)
