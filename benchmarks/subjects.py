"""What is compared: the quantizers with their settings, and the cells of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Subject:
    """One quantizer with settings.

    Attributes:
        key: Name on the command line and in file names.
        title: Name in the tables.
        peer: Key of `benchmarks.peers.PEERS`; "" is qcompiler itself.
        options: Options of the peer's child.
        flags: Options of `qcompiler quantize`.
    """

    key: str
    title: str
    peer: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


SUBJECTS = {
    subject.key: subject
    for subject in (
        Subject("ours", "**qcompiler**, default"),
        Subject("ours-entropy", "**qcompiler** entropy", flags=("--calibrator", "entropy")),
        Subject(
            "ours-unsmoothed",
            "**qcompiler** entropy, no outlier handling",
            flags=("--calibrator", "entropy", "--smooth-quant", "off", "--qfem", "off"),
        ),
        Subject(
            "ours-smoothed",
            "**qcompiler** entropy, SmoothQuant and QFeM",
            flags=("--calibrator", "entropy", "--smooth-quant", "auto", "--qfem", "auto"),
        ),
        Subject("ours-cpu", "**qcompiler** for ONNX Runtime", flags=("--target", "onnxruntime")),
        Subject(
            "ort-minmax",
            "onnxruntime minmax (default)",
            "ort",
            {"method": "minmax", "layers": "all", "outputs": "yes"},
        ),
        Subject(
            "ort-percentile",
            "onnxruntime percentile, linear inputs only",
            "ort",
            {"method": "percentile", "layers": "linear", "outputs": "no"},
        ),
        Subject(
            "ort-tuned",
            "onnxruntime minmax, linear inputs only",
            "ort",
            {"method": "minmax", "layers": "linear", "outputs": "no"},
        ),
        Subject("modelopt", "Model Optimizer entropy (default)", "modelopt", {"method": "entropy", "layers": "all"}),
        Subject(
            "modelopt-tuned", "Model Optimizer max, linear only", "modelopt", {"method": "max", "layers": "linear"}
        ),
        Subject("nncf", "NNCF (default)", "nncf", {"type": "none"}),
        Subject("nncf-tuned", "NNCF for transformers (SmoothQuant)", "nncf", {"type": "transformer"}),
    )
}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        model: Folder name of the model.
        subject: Key of `SUBJECTS`.
        samples: Feeds of batch 1.
        repeats: How often at most; fewer where each takes long.
        judged: Whether accuracy and latency are measured too.
    """

    model: str
    subject: str
    samples: int
    repeats: int = 3
    judged: bool = True

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}.{self.subject}.n{self.samples}"


MODELS = ("magika", "ppocr-rec", "efficientnet-lite0", "minilm-l6", "paraphrase-minilm-l3")
OURS = ("ours", "ours-entropy", "ours-cpu")
PEERS = ("ort-minmax", "ort-percentile", "modelopt", "nncf")
TUNED = ("ort-tuned", "modelopt-tuned", "nncf-tuned")  # what makes a difference for transformers
TRANSFORMERS = ("minilm-l6", "paraphrase-minilm-l3")
LARGE, LARGE_MODELS = 512, ("magika", "ppocr-rec", "minilm-l6")
HUGE, HUGE_MODEL = 2048, "paraphrase-minilm-l3"


def matrix() -> list[Cell]:
    """All cells in the order in which they are measured."""
    cells = []
    for model in MODELS:
        tuned = TUNED if model in TRANSFORMERS else ()
        cells += [Cell(model, subject, 64) for subject in (*OURS, *PEERS, *tuned)]
    for model in LARGE_MODELS:
        cells.append(Cell(model, "ours-entropy", LARGE, judged=False))
        cells.append(Cell(model, "ours", LARGE, repeats=1, judged=False))
    cells.append(Cell("minilm-l6", "ort-minmax", LARGE, repeats=1, judged=False))
    cells.append(Cell(HUGE_MODEL, "ours-entropy", HUGE, repeats=1, judged=False))
    return cells
