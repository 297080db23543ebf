"""What the reports say about outliers: every figure, plots that stay in their frame, and pages without these keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qcompiler.report import html, outliers
from qcompiler.support.as_json import plain
from tests.kit.report.pages import EVIL, Document, example, inspected, join, tensor


def full(folder: Path) -> dict[str, Any]:
    manifest = example(folder)
    rows = [tensor(k, ratio, EVIL) for k, ratio in enumerate((2.0, 1954.0, 8.5, 61.0, 1.0))]
    manifest["outliers"] = rows
    manifest["qfem"] = {
        "alpha": 24.0,
        "rule": "the target is reached",
        "curve": [
            {"alpha": 2000.0, "share": 0.0, "sqnr_db": 3.1, "layers": 0},
            {"alpha": 60.0, "share": 0.021, "sqnr_db": 14.2, "layers": 1},
            {"alpha": 24.0, "share": 0.0399, "sqnr_db": 21.7, "layers": 2},
        ],
        "chosen": [rows[1], rows[3]],
    }
    groups = [
        {"tensor": row["tensor"], "readers": row["readers"], "alpha": alpha, "how": how, "why": why, "gain_db": 3.4}
        for row, alpha, how, why in zip(
            rows,
            (0.7, None, 0.55, 0.0, 1.0),
            ("absorbed", "", "inserted", "absorbed", "absorbed"),
            ("gains most", "nothing <b> absorbs it", "gains", "gains", "gains"),
            strict=True,
        )
    ]
    manifest["smooth_quant"] = {"groups": groups, "folded": 3, "inserted": 1, "skipped": 1}
    manifest["residuals"] = [join(k, 4.0**k, 10.0) for k in range(6)]
    manifest["plan"][0]["precision"] = "fp8"
    return manifest


def test_the_html_has_every_figure_about_outliers(tmp_path: Path) -> None:
    document = Document(html.render(full(tmp_path)))
    assert document.open == []
    text = " ".join(document.texts)
    for figure in (
        "1954 times the median, the largest at position 1 (id 101), channel 8",
        "1 (id 101) 7816",
        "8 ×12.5",
        "Readers of 2 activations stay in high precision: their ratios are above 24 (the target is reached)",
        "24: 2 activations, 3.99 % of MACs high, 21.7 dB",
        "3 folded, 1 inserted, 1 skipped",
        "nothing <b> absorbs it",
        "3.4 dB",
        "most at add_5 (feed-forward), 102 times",
        "fp8 1 (",
    ):
        assert figure in text, figure
    assert [tag for tag, _ in document.tags].count("script") == 1


def test_the_chosen_threshold_and_the_spared_tensors_are_marked(tmp_path: Path) -> None:
    manifest = full(tmp_path)
    trade = outliers.qfem(manifest["qfem"])
    (marked,) = re.findall(r'class="chosen"><title>([^<]*)', trade)
    assert marked.startswith("alpha 24")
    depth = outliers.activations(manifest["outliers"], manifest["qfem"])
    assert depth.count('class="chosen"') == 2
    assert outliers.activations(manifest["outliers"], None).count('class="chosen"') == 0


def test_groups_that_are_not_smoothed_are_rings(tmp_path: Path) -> None:
    text = outliers.smooth_quant(full(tmp_path)["smooth_quant"])
    (ring,) = re.findall(r'class="exact"><title>([^<]*)', text)
    assert "not smoothed" in ring


def test_the_strip_shows_runs_of_one_format_in_graph_order() -> None:
    rows = [
        {"node": f"n{k}", "precision": precision, "macs": 100 if k != 2 else 0, "why": "because"}
        for k, precision in enumerate(("int8", "int8", "fp32", "int8", "fp16", "fp8"))
    ]
    pieces = re.findall(r'<i class="(\w+)" style="flex:(\d+)"', outliers.formats(rows))
    assert pieces == [("int8", "3"), ("fp16", "1"), ("fp8", "1")]
    assert outliers.formats(rows[:2]) == ""


@pytest.mark.parametrize("missing", [None, {}, {"groups": [], "curve": [], "chosen": []}])
def test_pages_without_these_keys_have_none_of_these_sections(tmp_path: Path, missing: Any) -> None:
    manifest = example(tmp_path)
    for key in ("outliers", "smooth_quant", "qfem", "residuals"):
        manifest[key] = missing if key in ("smooth_quant", "qfem") else ()
    text = html.render(manifest)
    assert not any(f"<h2>{heading}</h2>" in text for heading in ("Outliers", "SmoothQuant", "QFeM", "Residual stream"))
    for key in ("outliers", "smooth_quant", "qfem", "residuals"):
        del manifest[key]
    assert html.render(manifest) == text


def test_a_manifest_from_disk_with_infinities_and_gaps_still_makes_a_page(tmp_path: Path) -> None:
    manifest = full(tmp_path)
    manifest["outliers"][0].update(ratio=float("inf"), top_tokens=[], top_channels=[], kurtosis=float("nan"))
    manifest["outliers"][2]["top_tokens"][0]["id"] = None
    manifest["qfem"].update(alpha=None, chosen=[])
    manifest["qfem"]["curve"][1]["sqnr_db"] = None
    manifest["residuals"].append(join(7, 3.0, 0.0))
    assert Document(html.render(plain(manifest))).open == []


def test_an_inspection_makes_a_page_of_its_own() -> None:
    text = html.inspection(inspected())
    document = Document(text)
    assert document.open == []
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert "i" not in [tag for tag, attrs in document.tags if not attrs]
    spoken = " ".join(document.texts)
    for figure in ("2.5 M", "1954 times the median", "38.0 dB", "225 times", "both <i>inputs</i>", "6.0 %", "2 of 3"):
        assert figure in spoken, figure
    places = re.findall(r"<title>\S*?(\d): ratio", text)
    assert places == ["0", "1", "2"]  # by depth, whatever the order of the table


def test_an_inspection_without_data_is_a_page_too() -> None:
    found = inspected()
    del found["spikes"], found["residuals"]
    document = Document(html.inspection(found))
    assert document.open == []
    assert "svg" not in [tag for tag, _ in document.tags]
