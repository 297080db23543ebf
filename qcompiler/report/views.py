"""What was compared, view by view: for the HTML report and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.report.figures import decibel, number, percent, short

Record = Mapping[str, Any]
APART_DB = 3.0  # twice the noise: figures that far apart are both told, as in the verdict
LOSS = 0.01  # of right answers: what a verdict calls doubtful
NEAR_DB = 1.0  # of a figure: what other samples take from it is told from there on
COLUMNS = ("view", "role", "SQNR", "agree", "worst sample", "cosine", "max error", "top-1")


def rows(found: Record) -> Iterator[tuple[str, ...]]:
    """A row for each view of a comparison, by `COLUMNS`; a manifest without views has one for each output."""
    outputs = {output["name"]: output for output in found["outputs"]}
    views = found.get("views") or ()
    for view in views:
        whole = outputs.get(view["name"])
        yield (
            view["name"],
            _role(view),
            "not compared" if view["missing"] else decibel(view["sqnr_db"]) + _beside(view),
            percent(view["agreement"] if view["agreement"] is not None else (whole or {}).get("equal")),
            _worst(view, found.get("positions") or ()),
            *_of_output(whole),
        )
    if not views:
        yield from (
            (name, "output", decibel(one["sqnr_db"]), percent(one["equal"]), "–", *_of_output(one))
            for name, one in outputs.items()
        )


def judged_on(found: Record) -> str:
    """Which data the figures are of: how many feeds, and whether anything was chosen by them."""
    text = f"{found['samples']} feed{'s' * (found['samples'] != 1)} of {found['data'] or 'the data'}"
    return f"{text}, in sample" if found.get("in_sample") else text


def worst(found: Record) -> str:
    """The worst view; and the one with the most noise for what varies from sample to sample, where that says more."""
    text = (
        f"{decibel(found['worst_sqnr_db'])}{_spread(found)} on {judged_on(found)} (worst view {found['worst_output']})"
    )
    told = (varying(found), _lost(found), _perplexity(found))
    return "; ".join((text, *(one for one in told if one)))


def decided(found: Record, below_db: float) -> bool:
    """Whether all that is judged and has less than so many dB is read in a known way, and that loses nearly nothing."""
    judged = (view for view in found.get("views") or () if view["judged"] and view["sqnr_db"] is not None)
    figures = [(min(_known(view["sqnr_db"]), _known(view.get("varying_db"))), _loss(view)) for view in judged]
    low = [lost for db, lost in figures if db < below_db]
    return bool(low) and all(lost is not None and lost <= LOSS for lost in low)


def _loss(view: Record) -> float | None:
    """The share that is lost of what is read of a view: right answers, or likelihood; None where that is not known."""
    told = [value for key in ("lost", "perplexity") if (value := view.get(key)) is not None]
    return max(map(_known, told), default=None)


def _known(value: Any) -> float:
    known = number(value)
    return math.inf if known is None else known


def _lost(found: Record) -> str:
    """How many right answers the noise takes from what decides, and from chances at most; "" where nothing does."""
    told: dict[bool, list[float]] = {}
    for view in found.get("views") or ():
        if view.get("lost") is not None:
            told.setdefault(view.get("step") == "Sigmoid", []).append(view["lost"])
    words = {False: "of right answers lost", True: "of right answers, F1 or order lost at most"}
    return "; ".join(f"{percent(max(told[one]))} {text}" for one, text in words.items() if one in told)


def _perplexity(found: Record) -> str:
    """By how much the noise raises the perplexity of what the next token is drawn by; "" where nothing is."""
    told = [value for view in found.get("views") or () if (value := number(view.get("perplexity"))) is not None]
    if not told:
        return ""
    return f"perplexity {percent(max(told))} higher" if math.isfinite(max(told)) else "perplexity without bounds"


def _spread(found: Record) -> str:
    """What other samples of the kind may bring, by the spread over these; "" where that is near, or unknown."""
    reached = number(found["worst_sqnr_db"])
    told = (number(view.get("margin_db")) for view in found.get("views") or () if view["sqnr_db"] == reached)
    margin = next((one for one in told if one is not None), None)
    if reached is None or margin is None or margin < NEAR_DB:
        return ""
    return f", with other samples {decibel(reached - margin)} or more"


def varying(found: Record) -> str:
    """The worst figure beside what varies from sample to sample; "" where it is about that of the whole, or unknown."""
    db, of_all = number(found.get("worst_varying_db")), number(found["worst_sqnr_db"])
    if db is None or of_all is None or db >= of_all - APART_DB:
        return ""
    return f"{decibel(db)} of what varies from sample to sample ({found['worst_varying']})"


def parts(found: Record) -> str:
    """How other parts of the data come out; "" where that was not measured."""
    told = found.get("parts") or {}
    return ", ".join(f"{name} {decibel(value)}" for name, value in told.items())


def _role(view: Record) -> str:
    if view["role"] == "source":
        return f"judged for '{view['output']}'"
    return f"{view['role']} of {view['step']}" if view["role"] == "result" and view["step"] else str(view["role"])


def _beside(view: Record) -> str:
    db, of_all = number(view.get("varying_db")), number(view["sqnr_db"])
    apart = db is not None and of_all is not None and db < of_all - APART_DB
    return f" ({decibel(db)} of what varies)" if apart else ""


def _worst(view: Record, positions: Any) -> str:
    index = view["worst_sample"]
    if index is None:
        return "–"
    at = positions[index] if index < len(positions) else index
    value = number(view["worst_sample_db"])
    return f"{at}" if value is None else f"{at}: {decibel(value)}"


def _of_output(output: Record | None) -> tuple[str, str, str]:
    if output is None:
        return "", "", ""
    known = number(output["cosine"])
    return "–" if known is None else f"{known:.6f}", short(output["max_abs"]), percent(output["top1"])
