"""One node on a screen: every figure on it is one of the manifest, and the layer is called what it is called."""

from __future__ import annotations

import re

import pytest

from qcompiler.report.questions.explain import BARS, terminal
from qcompiler.tools.explain import explain
from tests.kit.report.pages import words
from tests.kit.tools.stored import KINDS, ODD, figures_in, old, spelled, stored


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_on_the_screen_is_one_of_the_node(kind: str) -> None:
    for manifest in (stored(kind), old(stored(kind))):
        for one in manifest["plan"]:
            found = explain(manifest, one["node"]).to_json()
            text = words(terminal(found))
            known = spelled(found) | {"2"}  # of 2^k
            more = re.findall(r"and (\d+) more|\((\d+) of them\)", text)
            assert set(figures_in(text)) - known - {count for pair in more for count in pair} == set()


def test_a_screen_is_no_longer_than_a_screen() -> None:
    for kind in ("engine", "mixed"):
        manifest = stored(kind)
        for one in manifest["plan"]:
            console = list(terminal(explain(manifest, one["node"]).to_json()))
            assert len(console) < 12
            assert sum(getattr(part, "row_count", 1) for part in console) <= 40


def test_what_matters_is_there() -> None:
    text = words(terminal(explain(stored("engine"), ODD["c2"]).to_json()))
    for piece in (
        f"{ODD['c2']}: Conv in int8",
        "(rule linear)",
        "clipped at",
        "a bar for each doubling",
        "32 × 32 × 3 × 3, a scale per index of axis 0",
        "from R1 (Relu, fp16)",
        f"read by {ODD['s2']} (Add, fp16)",
        "its listing shows the product in int8",
        "against float on",
    ):
        assert piece in text, piece
    assert any(bar in text for bar in BARS)


def test_costs_and_formats_of_a_search_are_there() -> None:
    manifest = stored("mixed")
    (name,) = (one["node"] for one in manifest["plan"] if one["node"] == ODD["c2"])
    text = words(terminal(explain(manifest, name).to_json()))
    assert "fp8 clipped at" in text
    assert "predicted time of the group: " in text
    assert "this group went back to high precision as number " in text


def test_a_folded_node_and_what_is_not_known_are_told() -> None:
    text = words(terminal(explain(stored("int8"), ODD["n2"]).to_json()))
    assert "no node of the plan: passes speak of it" in text
    assert "fold-batch-norm: folded into" in text
    text = words(terminal(explain(old(stored("int8")), ODD["c1"]).to_json()))
    assert "not known: neighbours and the weight: the manifest is of an older qcompiler" in text


def test_that_a_compilation_was_not_accepted_comes_first() -> None:
    text = words(terminal(explain(stored("failed"), ODD["c1"]).to_json()))
    assert text.index("! not accepted: ") < text.index("(rule")


def test_a_tensor_of_zeros_and_one_with_a_single_bar() -> None:
    manifest = stored("int8")
    tensor = explain(manifest, ODD["c1"]).reads[0]["tensor"]
    bars = {"first": 0, "counts": [], "zeros": 5, "below": 0, "minimum": 0.0, "maximum": 0.0, "elements": 5}
    manifest["histograms"] = {tensor: bars}
    assert "all zero; values 0 to 0, 5 of 5 zero" in words(terminal(explain(manifest, ODD["c1"]).to_json()))
    manifest["histograms"] = {tensor: {**bars, "first": -3, "counts": [4], "zeros": 0, "minimum": -0.2}}
    assert "from 2^−3, a bar for each doubling: █; values −0.2 to 0" in words(
        terminal(explain(manifest, ODD["c1"]).to_json())
    )


def test_methods_of_the_whole_model_are_told() -> None:
    manifest = stored("int8")
    manifest["rungs"] = [
        {"name": "equalize", "tried": True, "kept": True, "gain_db": 2.5, "why": "channels differ"},
        {"name": "qfem", "tried": False, "kept": False, "gain_db": None, "why": "no token stands out"},
    ]
    tensor = explain(manifest, ODD["c1"]).reads[0]["tensor"]
    manifest["front"] = [{"id": k, "formats": {tensor: "int8"}, "high": [tensor] * (k > 1)} for k in range(3)]
    text = words(terminal(explain(manifest, ODD["c1"]).to_json()))
    assert "front int8 at 0, 1; high at 2" in text
    assert "equalize: kept, 2.5 dB gained for the model; channels differ" in text
    assert "qfem: not tried; no token stands out" in text
