"""A manifest with everything in it, and what stands in a page or on a terminal."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from qcompiler.engines.audit import Audit, Finding, Kind
from qcompiler.engines.base import EngineFile
from qcompiler.judge.figures import ViewFigure
from qcompiler.judge.outputs import Output
from qcompiler.passes.base import Changed, Report, Skipped
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.planning.search.safety_net import SafetyNet, Step
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.file import File
from qcompiler.target import DType
from qcompiler.verification.compare import Verification
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
        16,
        outputs,
        tuple(layers),
        Score("character accuracy", 0.97621, 0.97433, True),
        "lines/",
        random_data,
        seconds=3.2,
        views=(
            ViewFigure(f"{name} logits", f"{name} logits", f"{name} logits", "output", "", True, 16, 24.31, 3, 21.8),
            ViewFigure("boxes", "boxes", "boxes", "output", "", True, 16, math.inf, 0, math.inf),
            ViewFigure("index", "index", "index", "result", "ArgMax", False, 16, None, 5, None, 0.9375),
        ),
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


def words(renderables: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for one in renderables:
        console.print(one)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\s+", " ", text)


def tensor(k: int, ratio: float, name: str = "act") -> dict[str, Any]:
    return {
        "tensor": f"{name}_{k}",
        "readers": [f"q_{k}", f"k_{k}"],
        "ratio": ratio,
        "amax": 4.0 * ratio,
        "kurtosis": 3.0 + k,
        "top_channels": [{"channel": 7 + k, "amax": 4.0 * ratio, "over_median": 12.5}],
        "top_tokens": [{"position": k, "id": 101, "channel": 7 + k, "value": 4.0 * ratio, "sample": "ab"}],
    }


def join(k: int, branch: float, stream: float) -> dict[str, Any]:
    figures = {f"{of}_{what}": value for of, value in (("branch", branch), ("stream", stream), ("sum", branch + stream))
               for what in ("amax", "p99_99")}  # fmt: skip
    return {"add": f"add_{k}", "kind": "feed-forward", "ratio": branch / stream if stream else None, **figures}


def spike(k: int, ratio: float, name: str = "act") -> dict[str, Any]:
    return {**tensor(k, ratio, name), "depth": k, "int8_db": 40 - k, "p99_99": 1.0, "crest": 5.5, "over_channels": None}


def inspected() -> dict[str, Any]:
    return {
        "file": f"{EVIL}.onnx",
        "opset": 18,
        "macs": 2_500_000,
        "layers_that_can_be_int8": "2 of 3",
        "operators": {"MatMul": 3},
        "target": "tensorrt-rtx",
        "problems": [f"not looked at: {EVIL}"],
        "stays_float": [{"rule": "attention", "nodes": "qk", "share": 0.06, "why": "both <i>inputs</i>"}],
        "layers": [{"node": "n0", "op": "MatMul", "int8": "yes", "macs": 1_000_000, "share": 0.4}],
        "spikes": [spike(2, 1954.0, EVIL), spike(0, 2.0), spike(1, 40.0)],
        "residuals": [join(0, 2.0, 10.0), join(1, 2250.0, 10.0)],
    }


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
