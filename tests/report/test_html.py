"""Reports: everything that was measured is in them, nothing is fetched, nothing in a name becomes markup."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qcompiler.engines.audit import Audit, Finding, Kind
from qcompiler.engines.base import EngineFile
from qcompiler.passes.base import Changed, Report, Skipped
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.search.safety_net import SafetyNet, Step
from qcompiler.recipe.recipe import Recipe
from qcompiler.report import html, svg, terminal
from qcompiler.report.figures import count, decibel, percent, seconds, size
from qcompiler.support.file import File
from qcompiler.target import DType
from qcompiler.verification.compare import Output, Verification
from qcompiler.verification.drift import TappedLayer
from qcompiler.verification.metric import Score
from tests.kit import manifests

EVIL = "/bläck/<script>alert(1)</script>&\"conv'"


def example(folder: Path, *, nodes: int = 60, name: str = EVIL, random_data: bool = False) -> dict[str, Any]:
    """A manifest with everything in it; figures vary as real ones do."""
    rng = np.random.default_rng(0)
    (folder / "m.engine").write_bytes(b"engine" * 100)
    decisions, quantizers, layers = [], {}, []
    for k in range(nodes):
        node = f"{name}_{k}" if k % 7 == 3 else f"/backbone/stage{k // 12}/block{k % 12}/Conv"
        float_here = k % 9 == 4
        macs = int(10 ** rng.uniform(5.5, 7.8))
        sqnr = float(40 - 12 * k / nodes - rng.exponential(4) - 14 * (k == nodes // 2))
        rule = "sensitive" if float_here else "linear"
        why = f"alone it costs {60 - sqnr:.1f} dB at the outputs" if float_here else "weights per output channel"
        precision = DType.FP16 if float_here else DType.INT8
        decisions.append(Decision(node, "Conv", precision, rule, why, macs, {"sqnr_db": sqnr}))
        decisions.append(Decision(f"{node}/Relu", "Relu", DType.FP16, "other", "does not multiply"))
        layers.append(TappedLayer(f"{node}_out", node, "Conv", math.inf if k < 2 else sqnr, sqnr + 1, k == nodes // 2))
        seen = float(rng.lognormal(1, 1))
        quantizer = Quantizer(f"{node}_in", DType.INT8, seen * float(rng.uniform(0.3, 1)), "entropy", seen)
        quantizers[quantizer.tensor] = quantizer
    plan = Plan.of(decisions).with_(quantizers=quantizers)
    outputs = (
        Output(f"{name} logits", "float32", 16000, 24.31, 0.998132, 0.1812, 0.985, None, 0, 0, 0),
        Output("boxes", "float32", 6400, math.inf, 1.0, 0.0, None, None, 0, 0, 0),
        Output("index", "int64", 16, None, None, None, None, 0.9375, 0, 0, 0),
    )
    verification = Verification(
        16, outputs, tuple(layers), Score("character accuracy", 0.97621, 0.97433, True), "lines/", random_data, 3.2
    )
    curve = tuple(Step(share, sqnr) for share, sqnr in ((1.0, 6.2), (0.93, 17.8), (0.88, 22.6), (0.84, 25.4)))
    names = tuple(row.node for row in plan.quantized())
    mismatch = Finding(Kind.NOT_CONFIRMED, names[-1], "promised int8, but compiled to a float product")
    return manifests.build(
        source=File("m.onnx", "ab" * 32, 10_814_023),
        recipe=Recipe(target="tensorrt-rtx:sm89,sm120", keep=("</pre><b>",)),
        data={"name": "calibration.npz", "feeds": 256, "fingerprint": "cd" * 32},
        random_data=random_data,
        passes=[
            Report(f"fold-{what}", (Changed("a", "b"),) * k + (Skipped("c", "d"),) * 2, 0.02 * k)
            for k, what in enumerate(("constants", "batch-norm", "pad", "channel-affine", "things{bits=8}"))
        ],
        equivalence={"fold-constants": 0.0, "fold-batch-norm": 3.1e-7},
        plan=plan,
        safety=SafetyNet(restored=("a", "b", "c"), curve=curve, target_db=25.0),
        verification=verification,
        engine=EngineFile(folder / "m.engine", "tensorrt-rtx", 3_114_023, 14.2, ("sm89", "sm120"), "1.7.1"),
        audit=Audit(names[:-1], (mismatch,), dict.fromkeys(names[:-1], "int8") | {names[-1]: "float"}, len(names), 71),
        files={"qdq": File("m.qdq.onnx", "ef" * 32, 3_514_023)},
        timings={"load": 0.4, "observe": 5.13, "safety net": 3.2, "verify": 2.2, "build": 14.2},
        warnings=["node '<x>' was promised in INT8 and is not confirmed"],
    )


class Document(HTMLParser):
    """Collects tags and their attributes, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def words(renderables: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for one in renderables:
        console.print(one)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\s+", " ", text)


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


def test_the_terminal_summary_has_what_matters(tmp_path: Path) -> None:
    text = words(terminal.summary(example(tmp_path)))
    for figure in (
        "0.9762 → 0.9743 (−0.19 %)",
        "24.3 dB on 16 feeds",
        "int8",
        "nodes confirmed, 1 mismatch",
        "10.8 MB",
    ):
        assert figure in text, figure
    assert EVIL in text
    assert "sensitive" not in text
    assert "alone it costs" in text


def test_the_verification_table_names_the_first_drifting_layer(tmp_path: Path) -> None:
    text = words(terminal.verification(example(tmp_path, nodes=24)["verification"]))
    assert "First drifting layer: /backbone/stage1/block0/Conv (Conv)" in text
    assert "exact" in text


def test_the_plan_lists_every_node(tmp_path: Path) -> None:
    text = words([terminal.plan_table(example(tmp_path, nodes=9))])
    assert text.count("/Relu") == 9


def test_an_inspection_is_cut_unless_everything_is_asked_for() -> None:
    found = {"nodes": 3, "empty": [], "plan": [{"node": f"n{k}", "macs": k} for k in range(100)]}
    assert "and 60 more" in words(terminal.inspection(found))
    assert "n99" in words(terminal.inspection(found, everything=True))


@pytest.mark.parametrize("layers", [1, 2, 96])
def test_plots_stay_inside_their_frame(layers: int) -> None:
    figures: list[Any] = ["inf", "-inf", None, 55.5]
    rows = [{"node": "n", "op": "Conv", "sqnr_db": figures[k % 4], "drifts": False} for k in range(layers)]
    steps = [{"share": share, "sqnr_db": value} for share, value in ((1.0, "-inf"), (0.0, "inf"))]
    for text in (svg.drift(rows, 12.0), svg.curve(steps, 25.0)):
        for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text):
            assert 0 <= float(x) <= svg.WIDTH
            assert 0 <= float(y) <= svg.HEIGHT
    assert svg.drift([], 12.0) == svg.curve([], None) == ""


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
