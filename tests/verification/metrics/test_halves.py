"""A metric in two halves: what each loses, what cannot be split, and how little it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.errors import UsageError
from qcompiler.runtime.token_feeds import Filler
from qcompiler.verification.compare import verify
from qcompiler.verification.metrics.halves import CHOOSING, JUDGING, UNKNOWN_MARGIN, HalfLoss, MetricHalves
from qcompiler.verification.perplexity import Perplexity, Window
from tests.kit.verification.chain import WEIGHTS, Samples, chain, changed

Answers = Mapping[str, Any]
Model = Callable[[Any], Answers]


def truth(feeds: Any) -> Answers:
    """A model that is always right: each row's first value says which class it is, out of four."""
    return {"y": np.eye(4, dtype=np.float32)[np.asarray(feeds["x"])[:, 0].astype(int) % 4]}


def wrong_in(calls: set[int]) -> Model:
    """The same, but wrong throughout in these calls; which call it is stands in the second value."""

    def model(feeds: Any) -> Answers:
        right = truth(feeds)["y"]
        return {"y": right[:, ::-1].copy() if int(feeds["x"][0, 1]) in calls else right}

    return model


def counted(model: Model) -> tuple[Model, list[int]]:
    """A model, and a list that grows with its runs."""
    runs: list[int] = []

    def run(feeds: Any) -> Answers:
        runs.append(1)
        return model(feeds)

    return run, runs


def accuracy(calls: int, rows: int = 4) -> Callable[[Any], float]:
    """A metric of so many calls, with labels of its own."""

    def evaluate(run: Any) -> float:
        right = 0
        for call in range(calls):
            x = np.stack([np.arange(rows), np.full(rows, call)], 1).astype(np.float32)
            right += int((run({"x": x})["y"].argmax(1) == np.arange(rows) % 4).sum())
        return right / (calls * rows)

    return evaluate


def test_the_halves_of_a_mean_add_up_to_the_whole() -> None:
    quantized = wrong_in({0, 1, 2, 7, 30})
    halves = MetricHalves(accuracy(32), truth)
    choosing, judging = halves.loss(quantized), halves.loss(quantized, JUDGING)
    assert (choosing.half, judging.half) == pytest.approx((2 / 32, 3 / 32))  # calls 7 and 30, and the others
    assert (choosing.whole, judging.whole) == pytest.approx((4 / 32, 6 / 32))
    score = halves.score(quantized)
    assert score.drop == pytest.approx(5 / 32)
    assert score.halves is not None
    assert score.halves["choosing_loss"] + score.halves["judging_loss"] == pytest.approx(score.drop)
    assert score.to_json()["halves"]["split"] is True


def test_a_half_is_blind_to_the_other() -> None:
    halves = MetricHalves(accuracy(32), truth)
    assert halves.loss(wrong_in({0, 1, 2, 3})).whole == 0
    assert halves.loss(wrong_in({4, 5, 6, 7}), JUDGING).whole == 0
    assert frozenset(range(8)) == CHOOSING | JUDGING
    assert not CHOOSING & JUDGING


def test_the_margin_is_a_standard_error_over_the_chunks() -> None:
    halves = MetricHalves(accuracy(32), truth)
    even, uneven = halves.loss(wrong_in({4, 12, 20, 28})), halves.loss(wrong_in({4, 5, 6, 7}))
    assert even.half == uneven.half == pytest.approx(4 / 32)
    assert even.margin == pytest.approx(0)
    assert uneven.margin == pytest.approx(np.std([4 / 32, 0, 0, 0], ddof=1) * math.sqrt(4 + 16 / 4))
    assert even.within(0.26)
    assert not uneven.within(0.26)
    assert not even.within(0.24)


def test_where_the_limit_is_missed_anyway_no_margin_is_looked_for() -> None:
    halves = MetricHalves(accuracy(16), truth)
    found = halves.loss(wrong_in(set(range(16))), limit=0.1)
    assert (found.margin, halves.evaluations) == (None, 1)
    assert not found.within(0.1)


def test_a_loss_that_is_not_known_to_spread_keeps_a_part_of_the_limit() -> None:
    assert HalfLoss(0.007, 0.007, None, split=False).spare(0.01) == UNKNOWN_MARGIN * 0.01
    assert HalfLoss(0.007, 0.007, None, split=False).within(0.01)
    assert not HalfLoss(0.008, 0.008, None, split=False).within(0.01)
    assert not HalfLoss(math.nan, math.nan, None, split=False).within(0.01)


def test_each_model_runs_once_for_each_call_that_it_answers() -> None:
    float_model, float_runs = counted(truth)
    quantized, runs = counted(wrong_in({4, 5}))
    halves = MetricHalves(accuracy(16), float_model)
    assert len(float_runs) == 16  # and not again to see whether the metric repeats itself
    halves.loss(quantized)
    assert (len(float_runs), len(runs)) == (16, 8)
    halves.score(quantized)
    assert (len(float_runs), len(runs)) == (16, 8 + 16)


def test_without_room_for_answers_the_models_run_again_and_the_figures_are_the_same() -> None:
    float_model, float_runs = counted(truth)
    quantized = wrong_in({2, 3})
    halves = MetricHalves(accuracy(16), float_model, room=100)
    found = halves.loss(quantized)
    assert found.half == MetricHalves(accuracy(16), truth).loss(quantized).half == pytest.approx(1 / 8)
    assert found.margin is None
    assert len(float_runs) > 16


@pytest.mark.parametrize("calls", [1, 7])
def test_a_metric_of_few_calls_is_judged_as_a_whole(calls: int) -> None:
    halves = MetricHalves(accuracy(calls, rows=1), truth)
    assert f"runs the model on {calls} parts" in halves.why
    found = halves.loss(wrong_in({0}))
    assert not found.split
    assert found.half == found.whole == pytest.approx(1 / calls)
    told = halves.score(wrong_in({0})).halves
    assert told is not None
    assert (told["split"], told["judging_loss"]) == (False, None)


def test_a_metric_that_feeds_outputs_back_is_split() -> None:
    def stateful(run: Any) -> float:
        state, error = np.zeros((1, 2), np.float32), 0.0
        for step in range(16):
            state = run({"x": np.full((1, 2), step, np.float32), "state": state})["state"]
            error += abs(float(state[0, 0]) - step)
        return 10.0 - error

    def exact(feeds: Any) -> Answers:
        return {"state": feeds["x"] + 0.5 * feeds["state"] * 0}

    def off(feeds: Any) -> Answers:
        return {"state": feeds["x"] + 0.01}

    halves = MetricHalves(stateful, exact)
    assert halves.why == ""
    found = halves.loss(off)
    assert found.split
    assert found.half == pytest.approx(8 * 0.01 / 10, rel=1e-3)
    assert found.whole == pytest.approx(halves.score(off).drop, rel=1e-3)


def test_a_metric_whose_length_depends_on_answers_is_not_split() -> None:
    def until_done(run: Any) -> float:
        steps = 0
        while steps < 40 and run({"x": np.full((1, 2), steps, np.float32)})["y"].sum() < 16:
            steps += 1
        return float(steps)

    halves = MetricHalves(until_done, lambda feeds: {"y": feeds["x"][:, :1]})
    assert halves.why == ""
    found = halves.loss(lambda feeds: {"y": feeds["x"][:, :1] + 4})
    assert not found.split
    assert found.whole == pytest.approx(4 / 16)
    assert "depends on the answers" in halves.why


def test_a_metric_that_shuffles_is_not_split() -> None:
    random = np.random.default_rng(0)

    def shuffled(run: Any) -> float:
        order = random.permutation(16)
        return float(np.mean([run({"x": np.full((1, 2), one, np.float32)})["y"].max() for one in order]))

    halves = MetricHalves(shuffled, truth)
    assert halves.why == "it feeds other data in each run"
    assert not halves.loss(truth).split


def test_a_metric_that_gives_another_score_in_each_run_is_not_split() -> None:
    drawn = iter(range(100))

    def noisy(run: Any) -> float:
        return accuracy(8)(run) + next(drawn)

    assert MetricHalves(noisy, truth).why == "it gives another score in each run"


def test_a_metric_may_keep_its_data_but_not_its_answers() -> None:
    kept: dict[int, Any] = {}

    def keeping(run: Any) -> float:
        for call in range(16):
            if call not in kept:
                kept[call] = run({"x": np.full((1, 2), call, np.float32)})["y"]
        return float(sum(one.max() for one in kept.values()))

    halves = MetricHalves(keeping, truth)
    with pytest.raises(UsageError, match="ran the float model 16 times and the quantized one not at all: it seems to"):
        halves.loss(truth)


def test_a_metric_may_write_into_what_it_gets() -> None:
    def writing(run: Any) -> float:
        total = 0.0
        for call in range(8):
            y = run({"x": np.full((2, 2), call, np.float32)})["y"]
            total += float(y.max())
            y[:] = 7
        return total

    halves = MetricHalves(writing, truth)
    assert (halves.float_score, halves.why) == (8.0, "")
    assert halves.loss(truth).half == 0


def test_a_metric_that_fails_on_mixtures_is_judged_as_a_whole() -> None:
    def strict(run: Any) -> float:
        answers = [float(run({"x": np.full((1, 2), call, np.float32)})["y"].max()) for call in range(8)]
        if len(set(answers)) > 1:
            raise ValueError("answers of two models")
        return answers[0]

    halves = MetricHalves(strict, truth)
    found = halves.loss(lambda feeds: {"y": 0.5 * truth(feeds)["y"]})
    assert (found.split, found.half) == (False, 0.5)
    assert "answers of two models" in halves.why


def test_a_metric_that_fails_on_the_model_is_an_error() -> None:
    def strict(run: Any) -> float:
        answers = [float(run({"x": np.full((1, 2), call, np.float32)})["y"].max()) for call in range(8)]
        if min(answers) < 1:
            raise ValueError("unsure")
        return 1.0

    halves = MetricHalves(strict, truth)
    with pytest.raises(UsageError, match="failed with ValueError: unsure"):
        halves.loss(lambda feeds: {"y": 0.5 * truth(feeds)["y"]})


def test_lower_may_be_better(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "import numpy as np\nHIGHER_IS_BETTER = False\nMETRIC = 'error'\n"
        "def f(run):\n    return 1.0 + sum(float(run({'x': np.full((1, 2), c, np.float32)})['e']) for c in range(8))\n"
    )
    halves = MetricHalves(f"{file}:f", lambda feeds: {"e": np.zeros(())})
    assert (halves.name, halves.higher_is_better, halves.float_score) == ("error", False, 1.0)
    assert halves.loss(lambda feeds: {"e": np.full((), 0.01)}).whole == pytest.approx(0.08, rel=1e-3)


def test_a_comparison_says_what_each_half_loses(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "import numpy as np\n"
        "def f(run):\n"
        "    x = np.random.default_rng(0).normal(size=(16, 1, 8)).astype(np.float32)\n"
        "    return 1 + float(np.mean([np.abs(run({'x': one})['y']).mean() for one in x]))\n"
    )
    first, second = chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(4, 0.5))
    plain, split = (
        verify(first, second, Samples(), metric=f"{file}:f", halves=one, drift=False) for one in (False, True)
    )
    assert plain.score is not None
    assert split.score is not None
    assert plain.score.halves is None
    assert (split.score.float_score, split.score.drop) == (plain.score.float_score, plain.score.drop)
    told = split.to_json()["score"]["halves"]
    assert told["split"] is True
    assert told["choosing_loss"] + told["judging_loss"] == pytest.approx(split.score.drop, rel=1e-5)
    known = verify(first, second, Samples(), metric=f"{file}:f", halves=True, float_score=7.0, drift=False).score
    assert known is not None
    assert known.float_score == 7.0


def test_perplexity_is_cut_between_windows() -> None:
    windows = tuple(Window(np.arange(40), 20) for _ in range(9))
    filler = Filler({"input_ids": (np.dtype(np.int64), (1, "n"))})
    plain, cached = (Perplexity(windows, filler, cached=one) for one in (False, True))
    assert list(plain.cuts) == list(range(9))
    steps = cached.runs // 9
    assert steps > 1
    assert list(cached.cuts) == [steps * window for window in range(9)]
