"""What `benchmarks.outliers` measures: models, and the recipes that each is compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Tables = Mapping[str, Mapping[str, Any]]
Row = tuple[str, str, str | float, str]  # key, title, alpha of SmoothQuant, alpha of QFeM

ALPHAS = (0.3, 0.5, 0.7, 0.85)
EVERYTHING = {"min_share": 1.0, "target_sqnr_db": -100.0}  # all layers quantized, whatever it costs
GOAL = {"min_share": 0.9, "target_sqnr_db": 27.0}  # what the best layers can reach with at least 90 % of the MACs
ENCODERS = ("minilm-l6", "paraphrase-minilm-l3", "magika")
GLU, GLU_TRAINED = ("glu", "glu-outlier"), ("glu-lm", "glu-lm-outlier")  # without and with, in this order
DECODER = "smollm2-135m"
COST_MODELS, COST_SAMPLES = ("minilm-l6", "magika"), 512


@dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
        row: the table it belongs to.
        model: folder name.
        key: name in file names.
        title: name in the table.
        tables: the recipe's tables; the top level is "".
        samples: calibration samples of batch 1.
    """

    row: str
    model: str
    key: str
    title: str
    tables: Tables = field(default_factory=dict)
    samples: int = 64

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}.{self.key}"

    def toml(self) -> str:
        """The recipe."""
        lines = [f"{key} = {_spell(value)}" for key, value in self.tables.get("", {}).items()]
        for table in filter(None, self.tables):
            lines += [f"[{table}]", *(f"{key} = {_spell(value)}" for key, value in self.tables[table].items())]
        return "\n".join([*lines, ""])


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _tables(alpha: object, qfem: object, safety: Mapping[str, Any], *, insert: bool = False, **top: Any) -> Tables:
    smooth = {"alpha": alpha, "insert": insert}
    if qfem == "auto" and safety is EVERYTHING:
        safety = {**safety, "target_sqnr_db": 199.0}  # or the walk over thresholds ends where it begins
    return {"": top, "safety": safety, "smooth_quant": smooth, "qfem": {"alpha": qfem}}


def cases(trained: bool) -> list[Case]:
    """All of them; `trained` adds the GLU models that were trained elsewhere."""
    found = [case for pair in (GLU, GLU_TRAINED)[: 1 + trained] for model in pair for case in _glu(model)]
    found += [case for model in ENCODERS for case in (*_encoder(model), *_fp8(model))]
    return found + _decoder()


def _glu(model: str) -> list[Case]:
    rows: list[Row] = [("plain", "plain W8A8", "off", "off"), ("smooth", "smooth-quant", "auto", "off")]
    rows += [("qfem", "qfem", "off", "auto"), ("both", "smooth-quant + qfem", "auto", "auto")]
    rows += [(f"a{alpha}", f"smooth-quant α {alpha} + qfem", alpha, "auto") for alpha in ALPHAS]
    return [Case("glu", model, key, title, _tables(alpha, qfem, EVERYTHING)) for key, title, alpha, qfem in rows]


def _encoder(model: str) -> list[Case]:
    found = []
    for insert in (False, True):
        suffix, words = ("-insert", ", Mul inserted") if insert else ("", "")
        for alpha in (*(() if insert else ("off",)), *ALPHAS, "auto"):
            tables = _tables(alpha, "off", EVERYTHING, insert=insert)
            found.append(Case("int8", model, f"a{alpha}{suffix}", f"α {alpha}{words}, everything INT8", tables))
        tables = _tables("auto", "auto", GOAL, insert=insert)
        found.append(Case("int8", model, f"goal{suffix}", f"all automatic{words}, 90 % INT8", tables))
    return found


def _fp8(model: str) -> list[Case]:
    return [
        Case("fp8", model, "fp8", "FP8, no smoothing", _tables("off", "off", EVERYTHING, precision="fp8")),
        Case("fp8", model, "fp8-smooth", "FP8, α auto", _tables("auto", "off", EVERYTHING, precision="fp8")),
        Case(
            "fp8", model, "mixed", "auto:int8,fp8,fp16", _tables("auto", "auto", GOAL, precision="auto:int8,fp8,fp16")
        ),
    ]


def _decoder() -> list[Case]:
    rows: list[Row] = [("plain", "plain W8A8", "off", "off"), ("qfem", "qfem", "off", "auto")]
    rows += [("smooth", "smooth-quant", "auto", "off"), ("both", "smooth-quant + qfem", "auto", "auto")]
    rows += [(f"a{alpha}", f"smooth-quant α {alpha} + qfem", alpha, "auto") for alpha in ALPHAS]
    found = [
        Case("decoder", DECODER, key, title, _tables(alpha, qfem, EVERYTHING), 32) for key, title, alpha, qfem in rows
    ]
    found.append(Case("decoder", DECODER, "goal", "defaults", {}, 32))
    return found
