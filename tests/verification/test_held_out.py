"""The text and the metric that results are judged by."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qcompiler.data.text import Text
from qcompiler.errors import UsageError
from qcompiler.ir import model as models
from qcompiler.recipe.tables import TextTable
from qcompiler.verification.held_out import HeldOut, chosen_metric, evaluation, judge_of, runs_of
from qcompiler.verification.perplexity import Perplexity
from tests.kit import decoder, reading
from tests.kit.rewrite import to_graph

# The last 20 % are made of words that are nowhere else, so that a window shows which part it is from.
LATE, BORDER = "zebra quartz. ", "u " * 40


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json and a.txt, whose last fifth is unlike the rest."""
    folder = tmp_path_factory.mktemp("text")
    reading.tokenizer(folder)
    early = reading.text(400)
    late = LATE * (len(early.encode()) // 4 // len(LATE))
    (folder / "a.txt").write_text(early + BORDER + late, encoding="utf8")
    return folder


def asked(*texts: str) -> HeldOut:
    return HeldOut(16, None, texts, None, TextTable())


def test_other_text_for_the_comparison_is_used_whole_and_shared_files_from_80_percent_on(
    room: Path, tmp_path: Path
) -> None:
    onnx.save(decoder.decoder(), tmp_path / "decoder.onnx")
    graph = models.load(tmp_path / "decoder.onnx").graph
    (tmp_path / "b.txt").write_text(reading.text(50, seed=5), encoding="utf8")
    own = Text(room / "a.txt", room, length=16)
    alone = evaluation(asked(), own, graph)
    both = evaluation(asked(str(room / "a.txt"), str(tmp_path / "b.txt")), own, graph)
    assert alone is not None
    assert both is not None
    first, second = both.stretches()
    assert alone.stretches() == [first]
    assert (first.begin > 0, second.begin, second.end) == (True, 0, (tmp_path / "b.txt").stat().st_size)
    assert own.stretches()[0].end == first.begin
    assert evaluation(asked(), "data.npz", graph) is None
    with pytest.raises(UsageError, match="verify_text needs a tokenizer"):
        evaluation(asked("b.txt"), "data.npz", graph)


def test_without_a_comparison_nothing_is_read() -> None:
    wanted = HeldOut(0, "other.npz", ("none.txt",), "perplexity", TextTable())
    found = judge_of(wanted, None, _decoder())
    assert (found.data, found.metric) == ("other.npz", None)


def test_other_data_stands_over_text(room: Path) -> None:
    own = Text(room / "a.txt", room, length=16)
    assert judge_of(HeldOut(2, "other.npz", (), None, TextTable()), own, _decoder()).data == "other.npz"
    found = judge_of(asked(), own, _decoder())
    assert isinstance(found.data, Text)
    assert found.data.part == "evaluation"
    assert found.metric is None


def test_a_metric_of_the_user_is_handed_on_as_it_is_written() -> None:
    wanted = HeldOut(2, None, (), "metric.py:score", TextTable())
    assert chosen_metric(wanted, None, {}) == "metric.py:score"
    assert runs_of("metric.py:score") == 0


def test_perplexity_needs_text() -> None:
    with pytest.raises(UsageError, match="metric 'perplexity' needs text"):
        chosen_metric(HeldOut(2, None, (), "perplexity", TextTable()), None, {})


def test_perplexity_says_how_often_it_runs_both_models(room: Path) -> None:
    own = Text(room / "a.txt", room, length=16)
    found = judge_of(HeldOut(2, None, (), "perplexity", TextTable(tokens=64)), own, _decoder())
    assert isinstance(found.metric, Perplexity)
    assert runs_of(found.metric) == 2 * found.metric.runs > 0


def test_a_part_that_was_chosen_is_kept(room: Path) -> None:
    own = Text(room / "a.txt", room, length=16, part="all")
    found = evaluation(asked(), own, _decoder().graph)
    assert found is not None
    assert found.part == "all"


def _decoder() -> models.Model:
    return models.Model(to_graph(decoder.decoder(layers=1)), {}, None, 8)
