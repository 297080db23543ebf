"""What the reports say about a prefix: what was put in front, what it does, and what was tried."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.report.qfep import line, qfep
from tests.kit.report.pages import EVIL, Document


def found(**changes: Any) -> dict[str, Any]:
    layers = [
        {"tensor": f"{EVIL}{k}", "reader": f"q{k}", "before": before, "after": after}
        for k, (before, after) in enumerate(((3.0, 2.5), (1954.0, 4.25), (60.0, 3.0)))
    ]
    return {
        "ids": [7, 9],
        "rule": "searched",
        "why": "the spikes vanish",
        "baked": True,
        "file": "m.prefix.npz",
        "bos": 2,
        "drops_first": False,
        "relative_error": 3.2e-6,
        "layers": layers,
        "trials": [{"ids": [], "worst": 1954.0, "mean": 60.0}, {"ids": [7, 9], "worst": 4.25, "mean": 3.0}],
        **changes,
    }


def test_the_line_has_the_prefix_and_the_layer_that_gains_most() -> None:
    assert line(found()) == "tokens 7, 9: q1 from 1954 to 4.25 times the median token"
    assert line(found(ids=[7])).startswith("token 7: ")


def test_the_line_says_what_a_caller_has_to_do() -> None:
    text = line(found(baked=False, drops_first=True))
    assert text.endswith(", to be given by the caller (m.prefix.npz); texts go without their first token 2")


def test_no_prefix_has_a_reason() -> None:
    none = found(ids=[], why="no token spikes", trials=[])
    assert line(none) == "none: no token spikes"
    text = " ".join(Document(qfep(none)).texts)
    assert "No prefix: no token spikes." in text
    assert "svg" not in qfep(none)


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_makes_no_section(nothing: Any) -> None:
    assert qfep(nothing) == ""


def test_the_section_has_every_figure_and_names_stay_text() -> None:
    document = Document(qfep(found(drops_first=True, float_score_without=12.5, float_score_with=12.25)))
    assert document.open == []
    assert "script" not in [tag for tag, _ in document.tags]
    text = " ".join(document.texts)
    for figure in ("tokens 7, 9 (searched; the spikes vanish), inside the graph", "differ by 3.2e-06", "1954", "4.25",
                   "2 prefixes tried", "3 activations", "12.5 without, 12.25 with the prefix"):  # fmt: skip
        assert figure in text, figure


def test_activations_stand_the_loudest_first_and_the_plot_has_both_series() -> None:
    text = qfep(found())
    assert text.index("<code>q1</code>") < text.index("<code>q2</code>") < text.index("<code>q0</code>")
    assert text.count("<circle") == 6
