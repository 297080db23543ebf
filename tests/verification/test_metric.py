"""The user's metric: loaded, run on both models, and every way it can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.errors import DataError, UsageError
from qcompiler.verification.compare import verify
from qcompiler.verification.metric import Outputs, Score, score_by, scoring_of
from tests.kit.verification.chain import WEIGHTS, Samples, chain, changed, numpy_chain

METRIC = """
import numpy as np
{constants}
def score(run):
    return float(np.abs(run({{"x": np.ones((1, 8), np.float32)}})["y"]).sum())
def broken(run):
    raise ValueError("no labels")
def words(run):
    return "good"
def places(run):
    outputs = run({{"x": np.ones((1, 8), np.float32)}})
    return float(outputs[0].sum() - outputs[:1][0].sum() + len(outputs) - 1)
"""


@pytest.fixture
def metric(tmp_path: Path) -> Path:
    path = tmp_path / "my metric.py"
    path.write_text(METRIC.format(constants="HIGHER_IS_BETTER = False\nMETRIC = 'sum of outputs'"))
    return path


def test_the_metric_is_run_on_both_models_and_knows_its_direction(tmp_path: Path, metric: Path) -> None:
    first, second = chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(4, 0.5))
    score = verify(first, second, Samples(), metric=f"{metric}:score", drift=False).score
    ones = {"x": np.ones((1, 8), np.float32)}
    expected = [np.abs(numpy_chain(w)(ones)["y"]).sum() for w in (WEIGHTS, changed(4, 0.5))]
    assert score is not None
    assert (score.float_score, score.quantized_score) == pytest.approx(expected, rel=1e-4)
    assert score.drop == pytest.approx((expected[1] - expected[0]) / expected[0], rel=1e-3)
    assert (score.name, score.higher_is_better) == ("sum of outputs", False)


def test_a_metric_may_take_outputs_by_position(tmp_path: Path, metric: Path) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    score = verify(model, model, Samples(), metric=f"{metric}:places", drift=False).score
    assert score is not None
    assert score.float_score == 0


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("scores", "has no function 'scores'; did you mean 'score'"),
        ("broken", "failed with ValueError: no labels"),
        ("words", "failed with ValueError: could not convert"),
    ],
)
def test_a_metric_that_does_not_work_is_a_usage_error(tmp_path: Path, metric: Path, function: str, says: str) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    with pytest.raises(UsageError, match=says):
        verify(model, model, Samples(), metric=f"{metric}:{function}")


@pytest.mark.parametrize("text", ["none.py:score", "no.such.module:score"])
def test_a_metric_that_is_not_there_is_named(tmp_path: Path, text: str) -> None:
    model = chain(tmp_path / "f.onnx", WEIGHTS)
    with pytest.raises(UsageError, match=rf"metric {text} cannot be loaded"):
        verify(model, model, Samples(), metric=text)


def test_a_score_that_is_known_is_not_measured_again(tmp_path: Path) -> None:
    model, calls = chain(tmp_path / "m.onnx", WEIGHTS), []

    def three(run: Any) -> float:
        calls.append(run)
        return 3.0

    score = verify(model, model, Samples(), metric=three, float_score=4.0, drift=False).score
    assert score is not None
    assert (score.float_score, score.quantized_score, len(calls)) == (4.0, 3.0, 1)


@pytest.mark.parametrize(
    ("scores", "higher", "drop"),
    [((0.8, 0.6), True, 0.25), ((20.0, 25.0), False, 0.25), ((0.5, 0.6), True, -0.2), ((0.0, -0.1), True, 0.1)],
)
def test_a_drop_is_relative_to_the_float_score(scores: tuple[float, float], higher: bool, drop: float) -> None:
    assert Score("m", *scores, higher).drop == pytest.approx(drop)


def test_outputs_are_taken_by_name_and_by_place() -> None:
    found = Outputs({"b": np.ones(2), "a": np.zeros(3)})
    assert list(found.keys()) == ["b", "a"]
    assert found["a"] is found[1]
    assert len(found) == 2


def test_an_object_says_itself_what_it_is_called_and_which_way_is_better() -> None:
    class Loss:
        label, higher_is_better, details = "loss", False, {"windows": 3}

        def __call__(self, run: Any) -> float:
            return float(run({})["y"].sum())

    found = score_by(Loss(), lambda _: {"y": np.full(2, 1.5)})
    assert (found.name, found.float_score, found.quantized_score) == ("loss", 3.0, 3.0)
    assert (found.higher_is_better, found.details) == (False, {"windows": 3})


def test_what_the_metric_feeds_is_watched_and_stays_out_of_the_record() -> None:
    def mean(run: Any) -> float:
        return float(sum(run({"x": np.full((1, 4), k, np.float32)})["y"].sum() for k in (1, 9)))

    def double(feeds: Any) -> dict[str, Any]:
        return {"y": feeds["x"] * 2}

    found = scoring_of(mean)(double, double, None, None)
    assert (found.fed["x"].minimum, found.fed["x"].maximum, found.fed["x"].count) == (1, 9, 8)
    assert set(found.to_json()) == {
        "name", "float_score", "quantized_score", "higher_is_better", "details", "drop",
    }  # fmt: skip
    assert score_by(mean, double).fed == {}


def test_an_error_of_ours_is_not_told_as_one_of_the_metric() -> None:
    def failing(run: Any) -> float:
        raise DataError("the labels are gone")

    with pytest.raises(DataError, match="^the labels are gone$"):
        score_by(failing, lambda _: {})
