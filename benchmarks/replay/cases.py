"""What the replay compiles: every precision, the targets, and the options that change what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from benchmarks.replay import language, models

SUBJECTS: Final[Mapping[str, Callable[[], models.Subject]]] = MappingProxyType(
    {
        "cnn": models.cnn,
        "encoder": models.encoder,
        "came": models.came,
        "operators": models.operators,
        "odd": models.odd,
        "spiking": language.spiking,
        "cached": language.cached,
        "llama": language.llama,
    }
)


@dataclass(frozen=True)
class Case:
    """One call of the product.

    Attributes:
        name: of the case and its folder.
        model: key of `SUBJECTS`.
        recipe: as `qcompiler.Recipe` takes it.
        command: function of the public API.
        data: what is passed as data: `feeds` (a list), `npz` (a file), `text`, `random` or `none`.
        options: more keywords of the call.
    """

    name: str
    model: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str = "quantize"
    data: str = "feeds"
    options: Mapping[str, Any] = field(default_factory=dict)


ADA, ORT, TRT = ({"target": name} for name in ("tensorrt-rtx:sm89", "onnxruntime", "tensorrt:sm89"))
# nothing is given back and nothing is smoothed or spared, so that the option in question acts
PLAIN: dict[str, Any] = {
    "safety": {"target_sqnr_db": 199.0, "min_share": 1.0},
    "smooth_quant": {"alpha": "off"},
    "qfem": {"alpha": "off"},
}


def _weights(bits: int, **table: Any) -> dict[str, Any]:
    return {"precision": f"int{bits}-weight", "weight_only": {"block_size": 32, **table}}


CASES: Final = (
    Case("cnn-int8", "cnn", data="npz"),
    Case("cnn-int8-onnxruntime", "cnn", ORT),
    Case("cnn-int8-tensorrt", "cnn", TRT),
    Case("cnn-int8-random", "cnn", {"calibrator": "minmax"}, data="random"),
    Case("cnn-int8-no-data", "cnn", data="none"),
    Case("cnn-fp8", "cnn", {**ADA, "precision": "fp8", "calibrator": "mse"}),
    Case("cnn-fp8-old-gpu", "cnn", {"target": "tensorrt-rtx:sm86", "precision": "fp8"}),
    Case("cnn-auto", "cnn", {**ADA, "precision": "auto"}),
    Case("cnn-fp16", "cnn", {"precision": "fp16"}, data="npz"),
    Case("cnn-bf16", "cnn", {"precision": "bf16", "high_precision": "bf16", "io_types": "high-precision"}),
    Case("cnn-int4-weight", "cnn", _weights(4)),
    Case("cnn-dynamic", "cnn", {**ORT, "precision": "int8-dynamic"}),
    Case("cnn-equalize-clip", "cnn", {"equalize": True, "weight_clip": "mse", "calibrator": "entropy"}),
    Case(
        "cnn-percentile-workers",
        "cnn",
        {
            "calibrator": "percentile",
            "workers": 2,
            "batch": 4,
            "weight_granularity": "tensor",
            "high_precision": "fp32",
        },
    ),
    Case("cnn-keep-io", "cnn", {"keep": ("^STEM", "Y$"), "io_types": "high-precision", "samples": 6}),
    Case("cnn-smooth-convolutions", "cnn", {"smooth_quant": {"alpha": 0.5, "convolutions": True, "insert": True}}),
    Case("cnn-gate-answered", "cnn", {"min_sqnr": 42.0}),
    Case("cnn-gate-missed", "cnn", {"min_sqnr": 150.0}),
    Case("cnn-compile", "cnn", ADA, command="compile"),
    Case("cnn-sensitivity", "cnn", ADA, command="sensitivity", options={"formats": "int8,fp8,int4"}),
    Case("encoder-int8", "encoder"),
    Case("encoder-int8-onnxruntime", "encoder", ORT),
    Case("encoder-smooth-half", "encoder", {"smooth_quant": {"alpha": 0.5, "insert": True}}),
    Case("encoder-smooth-layers", "encoder", {"smooth_quant": {"layers": {"DOWN": 0.8}}, "weight_clip": "mse"}),
    Case("encoder-qfem", "encoder", {"smooth_quant": {"alpha": "off"}, "qfem": {"alpha": 8.0, "weights": "int8"}}),
    Case("encoder-attention-int8", "encoder", {**ADA, "attention": "int8", "safety": {"target_sqnr_db": 5.0}}),
    Case("encoder-attention-fp8", "encoder", {**ADA, "precision": "fp8", "attention": "fp8"}),
    Case("encoder-attention-refused", "encoder", {**ORT, "attention": "int8"}),
    Case("encoder-auto-low", "encoder", {**ADA, "precision": "auto:int8,fp8"}),
    Case("encoder-auto", "encoder", {**ADA, "precision": "auto"}),
    Case("encoder-fp16", "encoder", {"precision": "fp16", "io_types": "high-precision"}),
    Case("encoder-bf16", "encoder", {"precision": "bf16", "high_precision": "bf16"}),
    Case("encoder-gate-answered", "encoder", {"min_sqnr": 24.0}),
    Case("encoder-dynamic", "encoder", {**ADA, "precision": "int8-dynamic"}),
    Case("encoder-dynamic-no-data", "encoder", {**ORT, "precision": "int8-dynamic"}, data="none"),
    Case("encoder-compile", "encoder", ADA, command="compile"),
    Case("encoder-inspect", "encoder", ADA, command="inspect"),
    Case("spiking-int8", "spiking", ORT),
    Case("spiking-qfem-auto", "spiking", {"qfem": {"alpha": "auto", "budget": 0.3}, "safety": {"min_share": 0.5}}),
    Case("spiking-qfep-auto", "spiking", {**ORT, **PLAIN, "qfep": {"prefix": "auto"}}),
    Case("spiking-qfep-prefixquant", "spiking", {**PLAIN, "qfep": {"prefix": "prefixquant"}}),
    Case("spiking-llm-int8-mask", "spiking", {**ADA, **PLAIN, "llm_int8": {"threshold": "auto"}}),
    Case("spiking-llm-int8-gather", "spiking", {**ORT, **PLAIN, "llm_int8": {"threshold": 6.0, "layout": "gather"}}),
    Case("spiking-llm-int8-split", "spiking", {**ORT, **PLAIN, "llm_int8": {"threshold": "auto", "layout": "split"}}),
    Case("spiking-dynamic", "spiking", {**ORT, "precision": "int8-dynamic", "llm_int8": {"threshold": "auto"}}),
    Case("spiking-int4-auto", "spiking", _weights(4)),
    Case("spiking-int4-rtn", "spiking", _weights(4, method="rtn", head="same")),
    Case("spiking-int4-mse-no-data", "spiking", _weights(4, method="mse") | ORT, data="none"),
    Case("spiking-int4-awq", "spiking", _weights(4, method="awq", head="float") | ORT),
    Case("spiking-int4-gptq", "spiking", _weights(4, method="gptq") | ADA),
    Case("spiking-int4-gptq-plain", "spiking", _weights(4, method="gptq", act_order=False, damp=0.05) | TRT),
    Case("spiking-int4-nbits", "spiking", _weights(4, method="awq+gptq", storage="matmulnbits") | ORT),
    Case(
        "spiking-int4-gate-answered",
        "spiking",
        _weights(4, method="rtn") | {"min_sqnr": 15.0, "safety": {"min_share": 0.2}},
    ),
    Case("spiking-int4-gate-missed", "spiking", _weights(4, method="rtn") | {"min_sqnr": 60.0}),
    Case("spiking-int8-weight", "spiking", _weights(8)),
    Case("spiking-int8-weight-compile", "spiking", _weights(8, method="rtn") | ADA, command="compile"),
    Case("spiking-sensitivity", "spiking", ORT, command="sensitivity"),
    Case("cached-int8", "cached"),
    Case("cached-int8-onnxruntime", "cached", {**ORT, "workers": 2}),
    Case("cached-qfep-given", "cached", {**ORT, **PLAIN, "qfep": {"prefix": (4, 2)}}),
    Case("cached-qfep-beside", "cached", {**ORT, **PLAIN, "qfep": {"prefix": (0,), "bake": False}}),
    Case("cached-int4", "cached", _weights(4, method="awq")),
    Case(
        "cached-text-perplexity",
        "cached",
        {
            **ORT,
            "metric": "perplexity",
            "max_drop": 10.0,
            "samples": 6,
            "text": {"length": 16, "stride": 8, "tokens": 64},
        },
        data="text",
    ),
    Case(
        "cached-compile",
        "cached",
        {**ADA, "generation": {"max_length": 64, "prompt": 16, "batch": 2}},
        command="compile",
    ),
    Case("came-int8", "came"),
    Case("came-int8-onnxruntime", "came", ORT),
    Case("came-fp16", "came", {"precision": "fp16"}),
    Case("came-compile", "came", ADA, command="compile"),
    Case("came-build-refused", "came", ADA, command="build"),
    Case("operators-int8", "operators"),
    Case("operators-int8-onnxruntime", "operators", ORT),
    Case("odd-int8", "odd"),
    Case("odd-fp16", "odd", {"precision": "fp16"}),
    Case("odd-build", "odd", ADA, command="build"),
    Case("odd-inspect", "odd", command="inspect", data="none"),
    Case("unknown-key", "odd", {"precison": "int8"}),
    Case("torch-int8", "llama", {**ORT, **PLAIN, "calibrator": "minmax"}),
)
