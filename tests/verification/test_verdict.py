"""The verdict: what calls a result doubtful or broken, and what the user's own limits overrule."""

from __future__ import annotations

import dataclasses
import math

import pytest

from qcompiler.errors import AccuracyError
from qcompiler.judge.figures import ViewFigure
from qcompiler.judge.views import Role
from qcompiler.verification.compare import Verification
from qcompiler.verification.drift import TappedLayer
from qcompiler.verification.gates import Gates
from qcompiler.verification.metric import Score
from qcompiler.verification.verdict import Judgement, Word, acceptable, advice, require, verdict_of


def view(db: float | None = 30.0, role: Role = Role.OUTPUT, *, agreed: float | None = None) -> ViewFigure:
    judged = role in (Role.OUTPUT, Role.PART, Role.SOURCE)
    return ViewFigure("y", "y", "y", str(role), "", judged, 8, db, 2, db, agreed)


def verified(*views: ViewFigure, **changes: object) -> Verification:
    return dataclasses.replace(Verification(8, (), views=views or (view(),)), **changes)  # type: ignore[arg-type]


def test_a_good_result_holds() -> None:
    found = verdict_of(verified(), Gates())
    assert (found.word, found.reasons) == (Word.HOLDS, ())
    assert found.to_json() == {"verdict": "holds", "reasons": []}


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (view(20.1), Word.HOLDS), (view(19.9), Word.DOUBTFUL), (view(3.1), Word.DOUBTFUL), (view(2.9), Word.BROKEN),
        (view(2.0, Role.CACHE), Word.HOLDS), (view(2.0, Role.RESULT), Word.HOLDS), (view(2.0, Role.PART), Word.BROKEN),
        (view(None, Role.RESULT, agreed=0.94), Word.DOUBTFUL), (view(None, Role.RESULT, agreed=0.49), Word.BROKEN),
        (view(None, Role.RESULT, agreed=0.96), Word.HOLDS), (view(None, Role.PASSED, agreed=0.2), Word.HOLDS),
    ],
)  # fmt: skip
def test_single_views(figure: ViewFigure, word: Word) -> None:
    found = verdict_of(verified(view(), figure), Gates())
    assert found.word is word
    assert len(found.reasons) == (word is not Word.HOLDS)


@pytest.mark.parametrize(
    ("db", "lost", "word"),
    [
        (12.0, 0.002, Word.HOLDS), (12.0, 0.02, Word.DOUBTFUL), (23.0, 0.02, Word.DOUBTFUL), (23.0, 0.002, Word.HOLDS),
        (2.9, 0.0, Word.BROKEN),
    ],
)  # fmt: skip
def test_what_decides_is_doubted_for_the_answers_that_it_loses(db: float, lost: float, word: Word) -> None:
    logits = dataclasses.replace(view(db, Role.SOURCE), lost=lost)
    found = verdict_of(verified(view(None, Role.RESULT), logits), Gates())
    assert found.word is word
    if word is Word.DOUBTFUL:
        assert found.reasons == (f"'y' has {db:.1f} dB, which takes 2.0% of its right answers",)
    assert verdict_of(verified(logits), Gates(min_sqnr=2)).word is Word.HOLDS


@pytest.mark.parametrize(
    ("db", "lost", "word"),
    [(12.0, 0.002, Word.HOLDS), (12.0, 0.02, Word.DOUBTFUL), (12.0, None, Word.DOUBTFUL), (23.0, 0.02, Word.HOLDS)],
)
def test_chances_are_in_no_doubt_where_little_is_lost_for_certain(db: float, lost: float | None, word: Word) -> None:
    chances = dataclasses.replace(view(db, Role.SOURCE), step="Sigmoid", lost=lost)
    found = verdict_of(verified(chances), Gates())
    assert found.word is word
    if lost == 0.02 and word is Word.DOUBTFUL:
        assert found.reasons == ("'y' has 12.0 dB, which may take up to 2.0% of right answers, F1 or order",)


@pytest.mark.parametrize(
    ("db", "rises", "word"),
    [(12.0, 0.002, Word.HOLDS), (24.0, 0.02, Word.DOUBTFUL), (19.0, 0.009, Word.HOLDS), (2.9, 0.0, Word.BROKEN)],
)
def test_what_the_next_token_is_drawn_by_is_doubted_for_its_perplexity(db: float, rises: float, word: Word) -> None:
    logits = dataclasses.replace(view(db), perplexity=rises)
    found = verdict_of(verified(logits), Gates())
    assert found.word is word
    if word is Word.DOUBTFUL:
        assert found.reasons == ("'y' has 24.0 dB, which raises the perplexity by 2.0%",)
    assert verdict_of(verified(dataclasses.replace(logits, lost=0.03)), Gates()).word is not Word.HOLDS
    assert verdict_of(verified(logits), Gates(min_sqnr=2)).word is Word.HOLDS


def test_the_metric_has_the_word() -> None:
    score = Score("accuracy", 0.9, 0.9, higher_is_better=True)
    assert verdict_of(verified(view(1.0), score=score), Gates()).word is Word.HOLDS


def test_who_asks_for_less_has_what_was_asked_for() -> None:
    assert verdict_of(verified(view(12.0)), Gates(min_sqnr=10)).word is Word.HOLDS
    assert verdict_of(verified(view(2.0)), Gates(min_sqnr=1)).word is Word.HOLDS
    assert verdict_of(verified(view(9.0)), Gates(min_sqnr=10)).word is Word.DOUBTFUL


def test_in_sample_random_and_nothing_at_all_are_doubts() -> None:
    assert verdict_of(verified(in_sample=True), Gates()).word is Word.DOUBTFUL
    assert "random" in verdict_of(verified(random=True), Gates()).reasons[0]
    assert verdict_of(None, Gates()).word is Word.DOUBTFUL


def test_parts_of_the_data_that_differ_are_told_where_one_misses_the_goal_and_the_sample_is_named() -> None:
    apart = verified(view(20.0), parts={"calibrate": 24.0}, positions=(5, 6, 17))
    found = advice(apart, 25.0)
    assert "held out 20.0, calibrate 24.0" in found
    assert "sample 17 stands out with 20.0 dB" in found
    assert advice(apart, 19.0) == ""
    assert advice(verified(view(20.0), parts={"calibrate": 22.0}), 25.0) == ""
    assert advice(verified(view(20.0)), 25.0) == ""
    assert advice(None, 25.0) == ""
    assert verdict_of(apart, Gates()).word is Word.HOLDS


def test_reasons_add_up_and_the_worst_comes_first() -> None:
    found = Judgement().doubted(["a"]).broken(["b"]).doubted(["a", "c"])
    assert (found.word, found.reasons) == (Word.BROKEN, ("b", "a", "c"))
    assert Judgement().doubted([]) == Judgement()


def test_what_is_broken_is_not_acceptable_unless_the_user_says_so() -> None:
    assert not acceptable(verified(view(1.0)), Gates())
    assert acceptable(verified(view(1.0)), Gates(allow_broken=True))
    assert acceptable(verified(view(10.0)), Gates())
    assert not acceptable(verified(view(10.0)), Gates(min_sqnr=20))


def test_what_is_broken_is_refused_with_its_reasons() -> None:
    with pytest.raises(AccuracyError, match=r"broken: 'y' has 1\.0 dB\. Keep layers.*--allow-broken"):
        require(verified(view(1.0)), Gates())
    require(verified(view(1.0)), Gates(allow_broken=True))
    require(verified(view(10.0)), Gates())


def test_what_decides_and_cannot_be_compared_is_a_doubt() -> None:
    hidden = dataclasses.replace(view(None, Role.SOURCE), missing=True, name="h (before ArgMax)")
    found = verdict_of(verified(view(None, Role.RESULT, agreed=1.0), hidden), Gates())
    assert found.word is Word.DOUBTFUL
    assert "h (before ArgMax)" in found.reasons[0]


def test_a_layer_that_computes_something_else_is_a_doubt_although_the_outputs_are_close() -> None:
    layers = tuple(
        TappedLayer(f"t{k}", f"n{k}", "Conv", 30.0, 40.0, True, own, True) for k, own in enumerate((2.0, -17))
    )
    found = verdict_of(verified(layers=layers), Gates())
    assert found.word is Word.DOUBTFUL
    (reason,) = found.reasons
    assert reason == (
        "layer 'n1' (Conv) computes something else than in the float model: -17.0 dB on the same inputs, and 1 more"
    )
    assert verdict_of(verified(layers=layers), Gates(min_sqnr=20)).word is Word.HOLDS
    assert verdict_of(verified(layers=layers, score=Score("m", 1.0, 1.0, True)), Gates()).word is Word.HOLDS


def test_a_layer_that_is_not_finite_is_a_doubt_whatever_was_asked() -> None:
    layer = TappedLayer("t", "n", "Conv", 30.0, 40.0, True, -math.inf, True)
    found = verdict_of(verified(layers=(layer,), score=Score("m", 1.0, 1.0, True)), Gates(min_sqnr=20))
    assert (found.word, found.reasons) == (Word.DOUBTFUL, ("layer 'n' (Conv) is not finite",))


def test_a_layer_that_drifts_is_no_doubt_by_itself() -> None:
    layer = TappedLayer("t", "n", "Conv", 30.0, 40.0, True, 10.0)
    assert verdict_of(verified(layers=(layer,)), Gates()).word is Word.HOLDS


def test_where_nothing_has_a_figure_that_is_a_doubt() -> None:
    assert "nothing of what the model gives" in verdict_of(verified(view(None)), Gates()).reasons[0]


@pytest.mark.parametrize(
    ("varying", "word"), [(20.1, Word.HOLDS), (19.9, Word.DOUBTFUL), (2.9, Word.BROKEN), (None, Word.HOLDS)]
)
def test_noise_that_hides_beside_a_constant_is_told(varying: float | None, word: Word) -> None:
    found = verdict_of(verified(dataclasses.replace(view(28.0), varying_db=varying)), Gates())
    assert found.word is word
    if varying is not None and word is not Word.HOLDS:
        assert found.reasons == (f"'y' has {varying} dB of what varies from sample to sample (28.0 dB of all)",)


def test_a_figure_that_is_about_the_same_is_told_once() -> None:
    found = verdict_of(verified(dataclasses.replace(view(14.0), varying_db=12.5)), Gates())
    assert found.reasons == ("'y' has 12.5 dB",)


def test_a_metric_and_a_gate_overrule_what_varies_too() -> None:
    low = dataclasses.replace(view(28.0), varying_db=11.0)
    assert verdict_of(verified(low, score=Score("m", 1.0, 1.0, True)), Gates()).word is Word.HOLDS
    assert verdict_of(verified(low), Gates(min_sqnr=10)).word is Word.HOLDS
    assert Gates(min_sqnr=20).hold(verified(low))  # a gate of dB is one of all of a signal
