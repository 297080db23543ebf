"""Reports: everything that was measured is in them, nothing is fetched, nothing in a name becomes markup."""

from __future__ import annotations

import re
from pathlib import Path

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
