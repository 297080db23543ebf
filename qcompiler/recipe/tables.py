"""The tables of a recipe, each the options of one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qcompiler.errors import UsageError
from qcompiler.recipe import checks as check

WEIGHT_METHODS: Final = ("auto", "rtn", "mse", "awq", "gptq", "awq+gptq")
PREPARATIONS: Final = ("imagenet", "yolo", "clip", "plain")


@dataclass(frozen=True)
class SafetyTable(check.Keys):
    """The accuracy safety net: the worst layers stay in high precision until the outputs are good enough."""

    target_sqnr_db: float = check.option(
        25.0, check.number(-100, 200), "predicted output SQNR in dB that is good enough; lower gives more speed"
    )
    min_share: float = check.option(
        0.9,
        check.number(0, 1),
        "share of the multiply-accumulates that can be quantized which stays so whatever the SQNR says, 0 to 1; below "
        "20 dB the default gives way to 0.8 of all; the gate on the result is the key min_share above all tables",
    )
    samples: int = check.option(
        8, check.integer(1), "samples that plans are compared on; fewer where samples are large"
    )


@dataclass(frozen=True)
class SmoothQuantTable(check.Keys):
    """SmoothQuant: outlier channels of activations are divided by a scale that the weights take over."""

    alpha: str | float = check.option(
        "auto",
        check.alpha(0, 1, "auto", "off"),
        "how much of the range moves into the weights, 0 to 1; auto: what errs least per layer; off: no smoothing",
    )
    insert: bool = check.option(
        False,
        check.flag,
        "insert a multiplication where no producer can absorb the scale (it costs time in the engine)",
    )
    convolutions: bool = check.option(False, check.flag, "smooth the inputs of convolutions too, not only of products")
    layers: Mapping[str, float] | None = check.option(
        None,
        check.by_layer,
        "alpha of single layers, by regular expression over node names",
        '{ "down_proj" = 0.8 }',
    )


@dataclass(frozen=True)
class QfemTable(check.Keys):
    """QFeM: layers whose input has single tokens that spike stay in high precision."""

    alpha: str | float = check.option(
        "auto",
        check.alpha(1, 1e9, "auto", "off"),
        "largest token over median token from which a layer stays high; auto: searched; off: no layer",
    )
    budget: float = check.option(
        0.1, check.number(0, 1), "share of the linear multiply-accumulates that may stay high for it, 0 to 1"
    )
    weights: str = check.option(
        "float", check.one_of("float", "int8"), "how those layers store their weights: float, or int8 to save memory"
    )


@dataclass(frozen=True)
class QfepTable(check.Keys):
    """QFeP: a few tokens in front of every text, whose keys and values keep later tokens from spiking."""

    prefix: str | tuple[int, ...] = check.option(
        "off",
        check.prefix,
        "off, auto (searched), prefixquant (by that rule), token ids such as [1, 28], or text:... (needs a tokenizer)",
    )
    max_length: int = check.option(4, check.integer(1), "tokens that a searched prefix may have")
    bos: int | None = check.option(
        None, check.integer(0), "id of the token that begins a text; unset: the one that all samples begin with", "1"
    )
    bake: bool = check.option(
        True, check.flag, "put it into the graph; false: only write .prefix.npz, for callers who manage the cache"
    )


@dataclass(frozen=True)
class WeightOnlyTable(check.Keys):
    """Weights stored in few bits, activations untouched: precisions int8-weight and int4-weight."""

    method: str = check.option(
        "auto",
        check.one_of(*WEIGHT_METHODS),
        f"how weights are rounded: {', '.join(WEIGHT_METHODS[1:])}, or auto: of each layer, "
        "what errs least on rows that nothing was fitted to; without data mse",
    )
    block_size: int = check.option(
        128, check.one_number(32, 64, 128), "input channels that share a scale in INT4: 32, 64 or 128"
    )
    act_order: bool = check.option(
        True, check.flag, "gptq rounds the input channels of most power first; blocks stay where they are"
    )
    damp: float | None = check.option(
        None,
        check.number(0, 1),
        "what gptq adds to the diagonal of the Hessian, relative to its mean; unset: the Hessian is shrunk, as far as "
        "rows that nothing was fitted to say",
        "0.01",
    )
    storage: str = check.option(
        "dequantize",
        check.one_of("dequantize", "matmulnbits"),
        "dequantize: standard DequantizeLinear; matmulnbits: ONNX Runtime's own MatMulNBits, for target onnxruntime",
    )
    head: str = check.option(
        "int8",
        check.one_of("int8", "float", "same"),
        "a vocabulary-wide last layer of an int4-weight model: int8 per channel, float, or the same as the rest",
    )
    tables: str = check.option(
        "int8",
        check.one_of("int8", "float"),
        "tables of embeddings: int8 with a scale per row, once where a table is the last layer's weight too, or float",
    )
    accuracy_level: int = check.option(
        1,
        check.one_number(0, 1, 2, 3, 4),
        "of matmulnbits: 1 computes in FP32, 4 rounds activations to INT8 (faster, less exact), 0 leaves it open",
    )


@dataclass(frozen=True)
class GenerationTable(check.Keys):
    """Engines of decoders with a key-value cache: an optimization profile for the prefill and one for the decode."""

    max_length: int | None = check.option(
        None,
        check.integer(2),
        "most tokens of a text, prompt and answer together; unset: the longest in the data",
        "2048",
    )
    prompt: int | None = check.option(
        None,
        check.integer(1),
        "tokens of a usual prompt; unset: the median of the data, half of max_length at most",
        "128",
    )
    batch: int | None = check.option(None, check.integer(1), "most texts at a time; unset: as in the data", "8")
    phases: str = check.option(
        "two",
        check.one_of("two", "one"),
        "two: a profile for the prefill and one for the decode; one: the prefill's serves both, in a smaller engine",
    )

    def __post_init__(self) -> None:
        """Checks each key, then that an answer has room."""
        super().__post_init__()
        if self.prompt is not None and self.max_length is not None and self.prompt >= self.max_length:
            raise UsageError(
                f"a prompt of {self.prompt} tokens leaves no room for an answer in max_length = {self.max_length}: "
                "make max_length larger or prompt smaller"
            )


@dataclass(frozen=True)
class TextTable(check.Keys):
    """Text as data: how windows of tokens are made of it, for calibration and for the metric perplexity."""

    tokenizer: str | None = check.option(
        None, check.text, "a tokenizer.json, or the folder that has one; unset: the one beside the model", '"model/"'
    )
    length: int | None = check.option(
        None, check.integer(2), "tokens of a window; unset: what the model takes, or 256", "512"
    )
    stride: int | None = check.option(
        None, check.integer(1), "tokens that windows of perplexity slide by; unset: half the length", "256"
    )
    tokens: int = check.option(
        8192, check.integer(0), "tokens of evaluation text that perplexity reads at most; 0: all of it"
    )


@dataclass(frozen=True)
class PreprocessTable(check.Keys):
    """Pictures and sounds as data: how a file becomes what the model reads. Unset keys are those of the method."""

    method: str | None = check.option(
        None,
        check.preprocessing(PREPARATIONS),
        f"how files of a folder become samples: {', '.join(PREPARATIONS)}, a preprocessor_config.json, or "
        "file.py:function that gets a path and returns an array, or a dict of arrays by input",
        '"imagenet"',
    )
    size: tuple[int, int] | None = check.option(
        None, check.picture_size, "height and width of pictures; unset: those that the model takes", "[480, 640]"
    )
    resize: str | None = check.option(
        None,
        check.one_of("crop", "letterbox", "stretch"),
        "crop: the middle, at the picture's own proportions; letterbox: all of it, with a border; stretch: neither",
        '"letterbox"',
    )
    keep: float | None = check.option(
        None, check.number(0.01, 1), "how much of the shorter side a crop keeps: 0.875 is 224 of 256", "0.875"
    )
    interpolation: str | None = check.option(
        None,
        check.one_of("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        "how pictures are resized",
        '"bicubic"',
    )
    fill: int | None = check.option(None, check.integer(0), "grey of the border of a letterbox, 0 to 255", "114")
    scale: float | None = check.option(
        None, check.number(0), "what bytes are multiplied by first: 1 leaves them from 0 to 255", "0.00392156862745098"
    )
    mean: tuple[float, ...] | None = check.option(
        None, check.numbers, "what is subtracted then, a number for each colour", "[0.485, 0.456, 0.406]"
    )
    std: tuple[float, ...] | None = check.option(
        None, check.numbers_above_zero, "what it is divided by then, a number for each colour", "[0.229, 0.224, 0.225]"
    )
    colour: str | None = check.option(
        None, check.one_of("rgb", "bgr"), "order of the colours; bgr is OpenCV's", '"bgr"'
    )
    layout: str | None = check.option(
        None,
        check.one_of("nchw", "nhwc"),
        "where the model has the colours; unset: the axis of size 1 or 3",
        '"nhwc"',
    )
    rate: int | None = check.option(
        None, check.integer(1), "samples in a second that the model expects of sounds", "16000"
    )
    normalize: bool | None = check.option(
        None, check.flag, "sounds get a mean of 0 and a variance of 1, as for wav2vec2", "true"
    )


@dataclass(frozen=True)
class LlmInt8Table(check.Keys):
    """LLM.int8(): channels of activations that are far larger than the others are multiplied apart, in float."""

    threshold: str | float = check.option(
        "off",
        check.alpha(0, 1e9, "auto", "off"),
        "largest |x| from which a channel is taken out, such as 6.0; auto: the fewest that reach sqnr_db; off: none",
    )
    layers: tuple[str, ...] = check.option(
        (), check.regexes, "regular expressions over node names; only these layers; empty: all of them"
    )
    layout: str = check.option(
        "mask",
        check.one_of("mask", "gather", "split"),
        "what the INT8 product reads: mask: all channels, outliers as zeros; gather: the others; split: outliers are "
        "moved to the end of the weights before",
    )
    sqnr_db: float = check.option(
        30.0, check.number(0, 100), "auto: SQNR in dB that the outputs of a layer shall reach, weights not counted"
    )
    most: float = check.option(
        0.1, check.number(0, 1), "share of the channels of a layer from which it is left alone, 0 to 1"
    )
