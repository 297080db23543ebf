"""Reports: everything that was measured is in them, nothing is fetched, nothing in a name becomes markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qcompiler.recipe.recipe import Recipe
from qcompiler.report import html, terminal
from tests.kit import manifests
from tests.kit.report.pages import EVIL, Document, example, words


def test_the_html_is_well_formed_and_asks_for_nothing(tmp_path: Path) -> None:
    text = html.render(example(tmp_path))
    document = Document(text)
    assert document.open == []
    asked = [attrs for _, attrs in document.tags if attrs.keys() & {"src", "href", "xlink:href", "srcset", "action"}]
    assert asked == []
    assert not re.search(r"@import|url\(|https?://|//\w", text)


def test_names_in_the_html_are_text_whatever_they_contain(tmp_path: Path) -> None:
    document = Document(html.render(example(tmp_path)))
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert any(text.startswith(EVIL) for text in document.texts)


def test_verdict_and_warnings_come_before_all_figures(tmp_path: Path) -> None:
    reasons = ["<b>3 samples</b>"]
    for verdict, kind in (("holds", "holds"), ("doubtful", "warning"), ("broken", "alarm")):
        page = html.render({**example(tmp_path), "verdict": {"verdict": verdict, "reasons": reasons}})
        line = f'<p class="verdict {kind}">{verdict.capitalize()}: &lt;b&gt;3 samples&lt;/b&gt;</p>'
        assert page.index(line) < page.index("was promised in INT8") < page.index('class="tiles"')
        assert Document(page).open == []
        assert "Not accepted" not in page
    missed = html.render({**example(tmp_path), "missed": {"code": 5, "error": "too bad"}})
    assert "Not accepted: no engine and no model was written" in missed


def test_the_html_has_every_figure(tmp_path: Path) -> None:
    text = " ".join(Document(html.render(example(tmp_path))).texts)
    for figure in (
        "24.3 dB",
        "0.9762 → 0.9743",
        "0.998132",
        "98.5 %",
        "93.8 %",
        "3.1e-07",
        "1 mismatch",
        "10.8 MB",
        "3.11 MB",
        "alone it costs",
        "promised int8, but compiled to a float product",
        "calibration.npz",
        "/backbone/stage2/block6/Conv",
        "3 groups of layers went back",
        "tensorrt-rtx:sm89,sm120",
    ):
        assert figure in text, figure


def test_undone_passes_and_what_they_were_checked_on_are_shown(tmp_path: Path) -> None:
    told = example(tmp_path)
    first, *rest = told["passes"]
    checked = {"samples": 1, "made_up": 1, "shapes": [], "why": "one size <b>only"}
    told = {**told, "passes": [{**first, "undone": "wrong"}, *rest], "equivalence": checked}
    told["random"] = [{"node": EVIL, "op": "Bernoulli"}]
    texts = Document(html.render(told)).texts
    assert "undone" in texts
    assert "Checked on 1 samples and 1 feeds that were made up; one size <b>only." in " ".join(texts)
    assert {EVIL, "Bernoulli"} <= set(texts)


def test_random_data_is_stamped_on_both_reports(tmp_path: Path) -> None:
    noisy, real = example(tmp_path, random_data=True), example(tmp_path)
    assert "Random data" in html.render(noisy)
    assert "Random data" in words(terminal.summary(noisy))
    assert "Random data" not in html.render(real) + words(terminal.summary(real))


def test_thousands_of_nodes_are_folded(tmp_path: Path) -> None:
    text = html.render(example(tmp_path, nodes=3000))
    assert len(text) < 3_000_000
    folded = [attrs for tag, attrs in Document(text).tags if tag == "details" and "open" not in attrs]
    assert len(folded) >= 3
    small = [attrs for tag, attrs in Document(html.render(example(tmp_path, nodes=5))).tags if tag == "details"]
    assert any("open" in attrs for attrs in small)


def test_a_manifest_of_a_run_that_only_built_still_makes_a_report(tmp_path: Path) -> None:
    bare = manifests.build(source=None, recipe=Recipe(precision="fp16"))
    assert Document(html.render(bare)).open == []
    assert "compiled to fp16 for tensorrt-rtx, the rest in fp16" in words(terminal.summary(bare))


def test_an_exported_model_is_named_with_its_error(tmp_path: Path) -> None:
    exported = {**example(tmp_path), "export": {"kind": "decoder", "error": 4.9e-6}}
    assert "decoder, off by 4.9e-06 from torch" in words(terminal.summary(exported))
    assert "decoder, off by 4.9e-06 from torch" in html.render(exported)
    assert "from torch" not in html.render(example(tmp_path))


def tile(record: Any, heading: str) -> str:
    """The class of a tile."""
    (found,) = re.findall(rf'<section class="tile ?(\w*)"><h3>{heading}</h3>', html.render(record))
    return str(found)


def test_what_decides_as_before_is_no_poor_figure(tmp_path: Path) -> None:
    record = example(tmp_path)

    def lost(share: float | None, other: float = 30.0) -> str:
        found = record["verification"]
        view = {**found["views"][0], "judged": True, "varying_db": None}
        views = [{**view, "sqnr_db": 12.0, "lost": share}, {**view, "sqnr_db": other}]
        return tile({**record, "verification": {**found, "worst_sqnr_db": 12.0, "views": views}}, "SQNR")

    assert [lost(0.001), lost(0.02), lost(None), lost(0.001, other=15.0)] == ["good", "poor", "poor", "poor"]


def test_figures_are_coloured_by_the_gates_and_without_one_by_what_is_doubtful(tmp_path: Path) -> None:
    record = example(tmp_path)

    def asked(db: float, drop: float, **gates: Any) -> Any:
        found = record["verification"]
        judged = {**found, "worst_sqnr_db": db, "score": {**found["score"], "drop": drop}}
        return {**record, "verification": judged, "recipe": {**record["recipe"], **gates}}

    assert [tile(asked(db, 0.0), "SQNR") for db in (20.0, 19.9)] == ["good", "poor"]
    assert [tile(asked(db, 0.0, min_sqnr=30.0), "SQNR") for db in (30.0, 29.9)] == ["good", "poor"]
    assert [tile(asked(20.0, drop), "metric") for drop in (0.0, 0.5)] == ["", ""]
    assert [tile(asked(20.0, drop, metric="m.py:f", max_drop=0.02), "metric") for drop in (0.02, 0.03)] == [
        "good",
        "poor",
    ]


def test_the_tile_of_a_metric_has_the_half_that_judges_and_the_one_that_chose(tmp_path: Path) -> None:
    record = example(tmp_path)
    halves = {"split": True, "judging_loss": 0.0033, "choosing_loss": 0.001}
    found = {**record["verification"], "score": {**record["verification"]["score"], "halves": halves}}
    text = html.render({**record, "verification": found})
    assert "of that −0.33 % in the half that judges, held out, and −0.10 % in the half that chose" in text
    assert "the half that chose" not in html.render(record)


def test_suspects_are_listed_with_what_repairing_them_does(tmp_path: Path) -> None:
    record = example(tmp_path)
    suspect = {"node": EVIL, "op": "Conv", "own_db": 3.1, "end": "boxes", "end_db": 4.2, "repaired_db": "inf"}
    found = {**record["verification"], "begins": "It begins there.", "suspects": [{**suspect, "share": 0.98}]}
    document = Document(html.render({**record, "verification": found}))
    text = " ".join(document.texts)
    for told in ("It begins there.", "most to blame", "4.2 dB", "exact", "98 %"):
        assert told in text
    assert document.open == []


def test_layers_that_only_store_their_weights_are_counted_apart(tmp_path: Path) -> None:
    record = example(tmp_path, nodes=9)
    plan = [{**one, "precision": "int4-weight" if one["op"] == "Conv" else "fp16"} for one in record["plan"]]
    text = html.render({**record, "plan": plan})
    count = sum(one["op"] == "Conv" for one in plan)
    told = (
        f"0 of {len(plan)} nodes compute in a quantized type; {count} compute in high precision with a weight that is"
    )
    assert told in text
