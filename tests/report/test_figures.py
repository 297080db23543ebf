"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.report.figures import (
    both_halves,
    broken,
    channels,
    count,
    decibel,
    held_out,
    percent,
    seconds,
    size,
    tokens,
    verdict,
    warnings,
    work,
)


def test_figures_are_written_for_people() -> None:
    assert [decibel(x) for x in (23.44, "inf", "-inf", None)] == ["23.4 dB", "exact", "broken", "–"]
    assert [size(x) for x in (999, 1_500, 10_814_023, 2_500_000_000, None)] == [
        "999 B",
        "1.5 kB",
        "10.8 MB",
        "2.5 GB",
        "–",
    ]
    assert [count(x) for x in (7, 1_200, 3_400_000_000)] == ["7", "1.2 k", "3.4 G"]
    assert [seconds(x) for x in (0.251, 3.14, 125.2, None)] == ["0.25 s", "3.1 s", "2 min 5 s", "–"]
    assert [percent(x) for x in (0.5, None)] == ["50.0 %", "–"]


def test_work_is_told_by_what_the_engine_confirms() -> None:
    macs = {"total": 200, "quantized_share": 0.75, "by_precision": {"fp16": 50, "int8": 150}}
    assert work(macs) == "75.0 % int8, 25.0 % fp16"  # of an older manifest
    assert not broken(macs)
    kept = macs | {"promised_share": 0.75, "confirmed": True, "uncounted": ["a"]}
    assert work(kept) == "75.0 % int8, 25.0 % fp16, confirmed by the engine; 1 node whose work nobody knows left out"
    missed = kept | {
        "quantized_share": 0.5,
        "by_precision": {"fp16": 50, "int8": 100, "unconfirmed": 50},
        "uncounted": [],
    }
    assert broken(missed)
    assert work(missed) == (
        "50.0 % int8, 25.0 % fp16, 25.0 % not confirmed, confirmed by the engine "
        "(75.0 % in low precision were promised)"
    )


def test_places_are_spelled_for_people() -> None:
    rows = [{"channel": k, "amax": 1.0, "over_median": value} for k, value in enumerate((1986.13, 14.02, None, 3.0))]
    assert channels(rows) == "0 ×1986, 1 ×14, 2"
    found: list[dict[str, Any]] = [
        {"position": 0, "id": 101, "value": 20.38},
        {"position": 35, "id": None, "value": 3071.7},
    ]
    assert tokens(found) == "0 (id 101) 20.4, 35 3072"
    assert (channels([]), tokens([])) == ("", "")


def test_a_verdict_is_one_line() -> None:
    assert verdict(None) == ""
    assert verdict({"verdict": "holds", "reasons": []}) == "Holds"
    assert verdict({"verdict": "broken", "reasons": ["a", "b"]}) == "Broken: a; b"


def test_a_warning_that_says_the_verdict_again_is_left_out() -> None:
    told = ["few samples", "the result is doubtful: few; 12.0 dB"]
    assert warnings({"verdict": {"verdict": "doubtful", "reasons": ["few", "12.0 dB"]}, "warnings": told}) == told[:1]
    assert warnings({"verdict": None, "warnings": told}) == told
    assert warnings({}) == []


@pytest.mark.parametrize(
    ("halves", "says"),
    [
        (None, ""),
        ({"split": False, "judging_loss": None}, "in sample: all of it chose"),
        ({"split": True, "judging_loss": 0.002}, "held out, the other half alone: −0.20 %"),
        ({"split": True, "judging_loss": -0.002}, "held out, the other half alone: +0.20 %"),
        ({"split": True, "judging_loss": 0.0}, "held out, the other half alone: +0.00 %"),
    ],
)
def test_what_is_held_out_is_said(halves: Any, says: str) -> None:
    assert held_out({"halves": halves}) == says


def test_both_halves_of_a_metric_are_told_apart() -> None:
    halves = {"split": True, "judging_loss": 0.0033, "choosing_loss": 0.001}
    told = both_halves({"halves": halves})
    assert told == "of that −0.33 % in the half that judges, held out, and −0.10 % in the half that chose"
    assert both_halves({"halves": {"split": False}}) == "in sample: all of it chose"
    assert both_halves({}) == ""
