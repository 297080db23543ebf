"""The table of views: roles in words, the worst sample where it stands in the data, old manifests as well."""

from __future__ import annotations

from typing import Any

from qcompiler.report import views


def output(name: str = "y", **changes: Any) -> dict[str, Any]:
    return {"name": name, "sqnr_db": 30.0, "cosine": 0.999, "max_abs": 0.5, "top1": 0.9, "equal": None} | changes


def view(name: str = "y", **changes: Any) -> dict[str, Any]:
    plain = {
        "name": name, "output": "y", "tensor": name, "role": "output", "step": "", "judged": True, "samples": 8,
        "sqnr_db": 30.0, "worst_sample": 1, "worst_sample_db": 21.5, "agreement": None, "reshaped": 0,
        "missing": False,
    }  # fmt: skip
    return plain | changes


def found(*shown: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plain = {"outputs": [output()], "views": list(shown), "positions": [4, 9], "samples": 8, "data": "a.npz"}
    return plain | changes


def test_an_output_has_its_figures_and_the_sample_is_named_as_it_stands_in_the_data() -> None:
    (row,) = views.rows(found(view()))
    assert row == ("y", "output", "30.0 dB", "–", "9: 21.5 dB", "0.999000", "0.5", "90.0 %")
    (row,) = views.rows(found(view(), positions=[]))
    assert row[4] == "1: 21.5 dB"


def test_a_source_says_what_it_is_judged_for() -> None:
    shown = view("h (before ArgMax)", role="source", tensor="h")
    (row,) = views.rows(found(shown))
    assert row[1] == "judged for 'y'"
    assert row[5:] == ("", "", "")
    (row,) = views.rows(found(shown | {"missing": True, "sqnr_db": None, "worst_sample": None}))
    assert row[2:5] == ("not compared", "–", "–")


def test_a_discrete_result_has_its_agreement() -> None:
    shown = view(role="result", step="ArgMax", sqnr_db=None, agreement=0.75, worst_sample_db=None)
    (row,) = views.rows(found(shown))
    assert row[1:5] == ("result of ArgMax", "–", "75.0 %", "9")


def test_a_manifest_without_views_has_a_row_for_each_output() -> None:
    (row,) = views.rows(found(output=1) | {"views": None})
    assert row == ("y", "output", "30.0 dB", "–", "–", "0.999000", "0.5", "90.0 %")


def test_in_sample_is_said() -> None:
    assert views.judged_on(found()) == "8 feeds of a.npz"
    assert views.judged_on(found(in_sample=True, samples=1)) == "1 feed of a.npz, in sample"
    assert views.parts(found(parts={"calibrate": 33.25})) == "calibrate 33.2 dB"
    assert views.parts(found()) == ""


def test_what_varies_is_told_where_it_is_the_smaller_part() -> None:
    (row,) = views.rows(found(view(varying_db=20.5)))
    assert row[2] == "30.0 dB (20.5 dB of what varies)"
    (row,) = views.rows(found(view(varying_db=28.0)))
    assert row[2] == "30.0 dB"
    figures = {"worst_sqnr_db": 30.0, "worst_output": "y", "worst_varying": "z", "worst_varying_db": 20.5}
    assert views.worst(found(**figures)) == (
        "30.0 dB on 8 feeds of a.npz (worst view y); 20.5 dB of what varies from sample to sample (z)"
    )
    assert views.worst(found(**figures | {"worst_varying_db": 28.0})) == "30.0 dB on 8 feeds of a.npz (worst view y)"
    older = {name: value for name, value in figures.items() if "varying" not in name}
    assert views.worst(found(**older)) == "30.0 dB on 8 feeds of a.npz (worst view y)"


def test_what_decides_says_how_many_right_answers_noise_takes() -> None:
    logits = view("h (before Softmax)", role="source", sqnr_db=12.0, varying_db=11.0, lost=0.004)
    told = found(logits, worst_sqnr_db=12.0, worst_varying_db=11.0, worst_output=logits["name"])
    assert (
        views.worst(told) == "12.0 dB on 8 feeds of a.npz (worst view h (before Softmax)); 0.4 % of right answers lost"
    )
    assert views.decided(told, 20.0)
    assert not views.decided(found({**logits, "lost": 0.02}), 20.0)
    assert not views.decided(found(logits, view("z", sqnr_db=40.0, varying_db=19.0)), 20.0)
    assert not views.decided(found(view(sqnr_db=30.0)), 20.0)  # nothing is that low
    chances = view("p", sqnr_db=14.0, varying_db=None, step="Sigmoid", lost=0.007)
    ends = "; 0.4 % of right answers lost; 0.7 % of right answers, F1 or order lost at most"
    assert views.worst(found(logits, chances, worst_sqnr_db=12.0, worst_output="h")).endswith(ends)


def test_what_the_next_token_is_drawn_by_says_how_the_perplexity_rises() -> None:
    logits = view("logits", sqnr_db=19.0, varying_db=18.5, perplexity=0.004)
    told = found(logits, worst_sqnr_db=19.0, worst_varying_db=18.5, worst_output="logits")
    assert views.worst(told) == "19.0 dB on 8 feeds of a.npz (worst view logits); perplexity 0.4 % higher"
    assert views.decided(told, 20.0)
    assert not views.decided(found({**logits, "perplexity": 0.02}), 20.0)
    assert not views.decided(found({**logits, "lost": 0.02}), 20.0)
    endless = found({**logits, "perplexity": "inf"}, worst_sqnr_db=1.0, worst_output="logits")
    assert views.worst(endless) == "1.0 dB on 8 feeds of a.npz (worst view logits); perplexity without bounds"
