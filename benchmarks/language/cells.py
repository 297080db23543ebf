"""What `benchmarks.language` measures: models, the forms they are exported in, and the recipe of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.outliers.cells import EVERYTHING, Case, Tables

MODELS = {
    "smollm2": "SmolLM2-135M-Instruct, from its 4-bit GGUF file",
    "gemma": "Gemma-like, 5.3 million weights",
    "mixtral": "Mixtral-like, 8.1 million weights",
}
TRAINED = ("gemma", "mixtral")
FORMS = {"whole": "without a cache", "cache": "with a cache, window by window in steps"}
LENGTH = 256  # tokens of a window, in calibration and evaluation
SAMPLES = 32  # calibration windows
FLOAT = "float"
NO_NET: Tables = {"smooth_quant": {"alpha": "off"}, "qfem": {"alpha": "off"}, "safety": EVERYTHING}
# QFeM goes on to its budget, instead of stopping where the net, which is off, would be content
WALKING = {**EVERYTHING, "target_sqnr_db": 199.0}


@dataclass(frozen=True)
class Row:
    """One way to compile.

    Attributes:
        key: name in file names and for `--row`.
        title: name in the table.
        tables: the recipe's tables; the top level is "".
        extra: not of the protocol, but tried to find out what reaches the target.
    """

    key: str
    title: str
    tables: Tables = field(default_factory=dict)
    extra: bool = False

    def toml(self) -> str:
        """The recipe."""
        return Case("language", "", self.key, self.title, self.tables).toml()

    @property
    def buildable(self) -> bool:
        """Whether its graph is one for TensorRT."""
        return self.tables.get("", {}).get("target") != "onnxruntime"


def _static(**tables: Mapping[str, Any]) -> Tables:
    """INT8 with static scales, every layer, whatever it costs, but for what `tables` change."""
    return {"": {}, **NO_NET, **tables}


def _stored(bits: str, method: str, block: int | None = None) -> Tables:
    table = {"method": method} if block is None else {"method": method, "block_size": block}
    return {"": {"precision": f"{bits}-weight"}, "weight_only": table}


def _net(share: int, prefix: object = "auto") -> Tables:
    """The defaults and a prefix, with a net that asks for more than it can get: so the budget is spent."""
    return {"qfep": {"prefix": prefix}, "safety": {"target_sqnr_db": 32.0, "min_share": share / 100}}


AUTO = {"alpha": "auto"}
COMMA = [28, 216]  # the prefix of SmolLM2 that a search over other samples found: a comma and a blank
PREFIX = {"prefix": "auto"}
DYNAMIC = {"precision": "int8-dynamic", "target": "onnxruntime"}
FP8 = {"precision": "fp8", "calibrator": "mse", "target": "tensorrt-rtx:sm89"}
ROWS = (
    Row(FLOAT, "FP32"),
    Row("w8a16", "W8A16, RTN", _stored("int8", "rtn")),
    *(
        Row(f"w4a16-{method}-{block}", f"W4A16, {method.upper()}, blocks of {block}", _stored("int4", method, block))
        for block in (32, 128)
        for method in ("rtn", "awq", "gptq")
    ),
    Row("plain", "W8A8 static, plain", _static()),
    Row("smooth", "W8A8 + SmoothQuant", _static(smooth_quant=AUTO)),
    Row("qfem", "W8A8 + QFeM", _static(qfem=AUTO, safety=WALKING)),
    Row("qfep", "W8A8 + QFeP", _static(qfep=PREFIX)),
    Row("all", "W8A8 + all three", _static(smooth_quant=AUTO, qfem=AUTO, qfep=PREFIX, safety=WALKING)),
    Row("net", "W8A8 + all three + safety net (the defaults and a prefix)", {"": {}, "qfep": PREFIX}),
    Row("fp8", "FP8", {**NO_NET, "": FP8}),
    Row("llm-int8", "W8A8 + LLM.int8", _static(llm_int8={"threshold": "auto"})),
    Row("dynamic", "W8A8 per token, dynamic", {"": DYNAMIC}),
    Row("dynamic-llm-int8", "W8A8 per token + LLM.int8 6.0", {"": DYNAMIC, "llm_int8": {"threshold": 6.0}}),
    # what it takes to lose no more than 1 %
    Row("smooth-qfep", "W8A8 + SmoothQuant + QFeP", _static(smooth_quant=AUTO, qfep=PREFIX), extra=True),
    *(Row(f"net-{share}", f"all, 32 dB or {share} % INT8", _net(share), extra=True) for share in (95, 90, 85, 80, 70)),
    *(
        Row(f"comma-{share}", f"all, prefix 28, 216, 32 dB or {share} % INT8", _net(share, COMMA), extra=True)
        for share in (100, 95, 90, 85, 80, 70)
    ),
    Row("fp16", "FP16", {"": {"precision": "fp16"}}, extra=True),
    Row("fp16-qfep", "FP16 + QFeP", {"": {"precision": "fp16"}, "qfep": PREFIX}, extra=True),
    Row("fp16-comma", "FP16 + QFeP 28, 216", {"": {"precision": "fp16"}, "qfep": {"prefix": COMMA}}, extra=True),
)
BY_KEY = {row.key: row for row in ROWS}


@dataclass(frozen=True)
class Cell:
    """One compilation of one model."""

    model: str
    form: str
    row: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}.{self.form}.{self.row}"
