"""What the user asked for, as one frozen value: `Recipe` <-> TOML <-> command line <-> manifest.

Each field carries its own check and its own help, so that the TOML comments, the error messages and the options of the
command line all say the same. Unknown keys and wrong values are `UsageError`s that name the key and what is allowed.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from qcompiler.errors import EngineError, UsageError
from qcompiler.recipe import checks as check
from qcompiler.recipe.budget import EFFORTS, duration
from qcompiler.recipe.checks import Shapes
from qcompiler.recipe.tables import (
    GenerationTable,
    LlmInt8Table,
    PreprocessTable,
    QfemTable,
    QfepTable,
    SafetyTable,
    SmoothQuantTable,
    TextTable,
    WeightOnlyTable,
)
from qcompiler.recipe.toml import entry_of, plain, to_toml, toml_text
from qcompiler.support.suggest import did_you_mean
from qcompiler.target import DType, Target, parse_target

_T = TypeVar("_T")

PRECISIONS: Final = ("int8", "fp8", "int8-dynamic", "int8-weight", "int4-weight", "fp16", "bf16")
AUTO_FORMATS: Final = ("int8", "fp8", "fp16")
HIGH_PRECISIONS: Final = ("fp32", "fp16", "bf16")
WEIGHT_GRANULARITIES: Final = ("channel", "tensor")
WEIGHT_CLIPS: Final = ("mse", "off")
ATTENTIONS: Final = ("float", "int8", "fp8")
IO_TYPES: Final = ("keep", "high-precision")
DEVICES: Final = ("cpu", "cuda", "auto")
OBJECTIVES: Final = ("share", "time", "size")
PICKS: Final = ("fastest", "most-accurate", "knee")


@dataclass(frozen=True)
class Recipe(check.Keys):
    """Everything a compilation can be asked for.

    Values are checked on construction.

    Raises:
        UsageError: a value is not allowed; the message names key, value and what is.
        EngineError: the target names an SM that its engine does not have.
    """

    precision: str = check.option(
        "int8",
        check.precision(PRECISIONS, AUTO_FORMATS),
        f"what linear layers compute in: {', '.join(PRECISIONS)}, or auto[:int8,fp8,fp16]: the cheapest for each layer",
    )
    calibrator: str = check.option(
        "auto",
        check.calibrator,
        "how ranges are found: entropy, percentile, minmax, mse, or auto: mse, and whatever the outputs like better",
    )
    target: str = check.option(
        "tensorrt-rtx",
        check.target,
        "engine and GPU generations: tensorrt-rtx[:sm89,sm120], tensorrt[:sm89] or onnxruntime",
    )
    plugin: tuple[str, ...] = check.option(
        (),
        check.texts,
        "shared libraries with operators of your own: plugins of TensorRT, or custom operators of ONNX Runtime",
    )
    engine_per_sm: bool = check.option(
        False,
        check.flag,
        "beside the engine for all GPUs of the target, one for each of them, NAME.sm89.engine; --workers share them",
    )
    high_precision: str | None = check.option(
        None,
        check.one_of(*HIGH_PRECISIONS),
        "type of all that is not quantized: fp32, fp16 or bf16; unset: fp16 for TensorRT, fp32 for onnxruntime",
        '"fp32"',
    )
    samples: int | None = check.option(
        None, check.integer(1), "take the first so many feeds; unset: all of the data", "512"
    )
    batch: int | None = check.option(
        None,
        check.integer(1),
        "samples in one run of the model while ranges are measured; unset: as the data comes",
        "16",
    )
    batch_axis: Mapping[str, int | None] | None = check.option(
        None,
        check.batch_axes,
        "which axis of an input counts samples (x=1), or that none does (x=none); unset: found by running the model",
        '{ x = 1, table = "none" }',
    )
    ranges: str | None = check.option(
        None,
        check.text,
        "known ranges: a TensorRT calibration table, JSON (tensor: amax or [lowest, highest]), or an earlier "
        "manifest; what is not in it is measured, or stays float where there is no data",
        '"calibration.cache"',
    )
    fix_input: Mapping[str, Any] | None = check.option(
        None,
        check.fixed_inputs,
        "inputs that are one value in deployment and become constants: a number, true or false, a list, or an .npy or "
        ".npz file",
        "{ use_cache_branch = true }",
    )
    fix_shape: Mapping[str, str] | None = check.option(
        None,
        check.fixed_shapes,
        "sizes of free axes: all of an input (x=1x3x224x224), or one by the name of the axis (batch=1)",
        '{ x = "1x3x224x224", batch = "1" }',
    )
    workers: int = check.option(
        1,
        check.integer(1),
        "processes that share the data and pieces of work that do not depend on each other; the result does not depend "
        "on it",
    )
    ray: str | None = check.option(
        None,
        check.text,
        "a Ray cluster that shares them instead: `auto`, or the address of its head node; the result does not depend "
        "on it",
        '"auto"',
    )
    device: str = check.option(
        "cpu",
        check.one_of(*DEVICES),
        "where the model is run over the data for statistics: cpu: the same bytes on every machine; cuda: a GPU, by "
        "onnxruntime-gpu; auto: a GPU where one works",
    )
    shard_size: str | None = check.option(
        None,
        check.size,
        "most bytes of a file of weights beside the quantized ONNX file; unset: one file, where they exceed 1 GiB",
        '"2GB"',
    )
    max_memory: str | None = check.option(
        None,
        check.size,
        "memory that the compilation may take; a model that needs more is worked on a few layers at a time; unset: "
        "what is free, less a margin",
        '"6GB"',
    )
    keep: tuple[str, ...] = check.option(
        (), check.regexes, "regular expressions; nodes whose name matches one stay in high precision"
    )
    shapes: Shapes | None = check.option(  # noqa: RUF009 (`option` makes a field)
        None,
        check.shapes,
        "optimization profile: input = [smallest, usual, largest shape]; unset: from the data",
        'x = ["1x3x224x224", "8x3x224x224", "32x3x224x224"]',
    )
    min_sqnr: float | None = check.option(
        None, check.number(-100, 200), "gate: the worst view must reach so many dB of SQNR; unset: no gate", "20.0"
    )
    max_drop: float | None = check.option(
        None,
        check.relative,
        "goal and gate: the metric may lose so much of the float score, relative (0.01 or 1%); needs metric",
        "0.01",
    )
    min_share: float | None = check.option(
        None,
        check.number(0, 1),
        "gate: so much of all multiply-accumulates must be quantized, 0 to 1; safety.min_share is no gate, but where "
        "the safety net stops; unset: no gate",
        "0.8",
    )
    objective: str = check.option(
        "share",
        check.one_of(*OBJECTIVES),
        "what is least among the plans that meet the goal: share: work in high precision; time: predicted time; size: "
        "bytes of weights",
    )
    pick: str | float | None = check.option(
        None,
        check.point(*PICKS),
        "which plan of the front: fastest, most-accurate, knee, the id of a point (3), or the share next to a number "
        "(0.8); unset: the cheapest that meets the goal",
        '"knee"',
    )
    replay: str | None = check.option(
        None,
        check.text,
        "an earlier manifest of the same model and data, whose front `pick` takes a plan from without a search",
        '"model.manifest.json"',
    )
    effort: str = check.option(
        "balanced",
        check.one_of(*EFFORTS),
        "how much is searched: quick, balanced or thorough",
    )
    search_time: float | None = check.option(
        None,
        duration,
        "in place of effort, how long is searched: 90s, 2m, or a number of seconds",
        '"2m"',
    )
    reproducible: bool = check.option(
        True,
        check.flag,
        "the search counts runs, what its time pays for at a nominal speed, so that the same input gives the same "
        "bytes; false: it goes by the clock",
    )
    allow_broken: bool = check.option(
        False, check.flag, "write a result whose verdict is broken, with a warning; false: exit 5"
    )
    metric: str | None = check.option(
        None,
        check.metric(check.METRICS),
        "perplexity (of text), or your own: file.py:function; function(run) -> score, with run(feeds) -> outputs",
        '"evaluate.py:accuracy"',
    )
    ignore_output: tuple[str, ...] = check.option(
        (), check.texts, "names of outputs that nothing is judged by, such as those for debugging"
    )
    strict: bool = check.option(
        False,
        check.flag,
        "a node that the engine's own listing does not confirm is an error (exit 6), and so is a float pass that must "
        "be undone (exit 1)",
    )
    verify_samples: int = check.option(
        64, check.integer(0), "feeds that float and quantized are compared on at most; 0: no verification"
    )
    verify_data: str | None = check.option(
        None,
        check.text,
        "other data for the comparison, written like --data; unset: a part of the data that is kept apart",
        '"heldout/"',
    )
    verify_text: tuple[str, ...] = check.option(
        (),
        check.texts,
        "other text files for the comparison and for perplexity; empty: the last 20 % of the calibration text",
    )
    weight_granularity: str = check.option(
        "channel", check.one_of(*WEIGHT_GRANULARITIES), "one weight scale per output channel or per tensor"
    )
    attention: str = check.option(
        "float",
        check.one_of(*ATTENTIONS),
        "float, or int8 or fp8: q, k, v, probabilities and result too, where TensorRT fuses them; costs accuracy",
    )
    weight_clip: str = check.option(
        "off", check.one_of(*WEIGHT_CLIPS), "mse: clip weights per channel where their output errs less; off: never"
    )
    equalize: bool = check.option(
        False, check.flag, "cross-layer equalization of convolutions: balance the weight ranges of neighbours"
    )
    io_types: str = check.option(
        "keep",
        check.one_of(*IO_TYPES),
        "types of float graph inputs and outputs: keep, or high-precision: like the rest",
    )
    safety: SafetyTable = SafetyTable()
    smooth_quant: SmoothQuantTable = SmoothQuantTable()
    qfem: QfemTable = QfemTable()
    qfep: QfepTable = QfepTable()
    llm_int8: LlmInt8Table = LlmInt8Table()
    generation: GenerationTable = GenerationTable()
    text: TextTable = TextTable()
    preprocess: PreprocessTable = PreprocessTable()
    weight_only: WeightOnlyTable = WeightOnlyTable()

    def __post_init__(self) -> None:
        """Checks each key, then the ones that need each other."""
        super().__post_init__()
        for name, kind in TABLES.items():
            table = getattr(self, name)
            if isinstance(table, Mapping):
                object.__setattr__(self, name, _build(kind, table, f"recipe table [{name}]"))
            elif not isinstance(table, kind):
                raise UsageError(f"recipe key '{name}' = {table!r}: allowed is a table [{name}]")
        if self.max_drop is not None and self.metric is None:
            raise UsageError("recipe key 'max_drop' needs 'metric': say which function gives the score")
        if self.verify_data is not None and self.verify_text:
            raise UsageError("recipe keys 'verify_data' and 'verify_text' exclude each other: give one of them")
        if self.attention != "float" and self.target.partition(":")[0] == "onnxruntime":
            raise UsageError(
                f"recipe key 'attention' = '{self.attention}' needs a TensorRT target: ONNX Runtime fuses attention "
                "in float only"
            )

        self._refuse_searches()
        if self.plugin and self.target.partition(":")[0] == "tensorrt-rtx":
            raise EngineError(
                f"'{self.plugin[0]}' cannot be loaded: TensorRT-RTX has no plugins. Choose '--target tensorrt'"
            )
        if self.engine_per_sm and (self.target.partition(":")[0] != "tensorrt-rtx" or "," not in self.target):
            raise UsageError(
                f"recipe key 'engine_per_sm' needs a target of several GPUs, and '{self.target}' is none: write "
                "--target tensorrt-rtx:sm89,sm120, or leave it out"
            )
        if self.weight_only.storage == "matmulnbits" and self.target.partition(":")[0] != "onnxruntime":
            raise UsageError(
                "recipe key 'weight_only.storage' = 'matmulnbits' is an operator of ONNX Runtime: choose target "
                "onnxruntime, or storage dequantize, which TensorRT fuses with the product"
            )

    def _refuse_searches(self) -> None:
        """What of a search makes no sense with the rest."""
        given = {
            "objective": self.objective != "share",
            "pick": self.pick is not None,
            "effort": self.effort != "balanced",
            "search_time": self.search_time is not None,
        }
        if self.replay is not None and self.pick is None:
            raise UsageError("recipe key 'replay' needs 'pick': which point of that manifest's front is to be made")
        if self.search_time is not None and given["effort"]:
            raise UsageError("recipe keys 'effort' and 'search_time' both say how long is searched: leave one out")
        asked = next((name for name, is_given in given.items() if is_given), None)
        if asked is not None and not self.formats():
            raise UsageError(
                f"recipe key '{asked}' = {getattr(self, asked)!r} is of the search for a plan, and precision "
                f"'{self.precision}' has none: leave it out, or choose precision int8, fp8 or auto"
            )
        if self.objective == "time" and self.target.partition(":")[0] == "onnxruntime":
            raise UsageError(
                "recipe key 'objective' = 'time' needs a TensorRT target: nothing predicts the time of ONNX Runtime's "
                "kernels; choose share or size"
            )

    def __hash__(self) -> int:
        """Equal recipes have equal TOML."""
        return hash(self.to_toml())

    @classmethod
    def from_toml(cls, source: str | Path) -> Self:
        """Reads a file (a `Path`, or a str that names one) or TOML text.

        Raises:
            UsageError: no such file, no TOML, an unknown key (with the closest known one) or a wrong value.
        """
        where, text = toml_text(source)
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(
                f"{where} is not TOML: {error}; 'qcompiler recipe show int8' prints a complete one"
            ) from error
        _refuse_retired(data, where)
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Self:
        """Reads plain data, such as the `recipe` entry of a manifest; None means unset, retired keys are left out."""
        known = {key: _without_retired(key, value) for key, value in data.items() if value is not None}
        for name, kind in TABLES.items():
            if isinstance(known.get(name), Mapping):
                known[name] = _build(kind, known[name], f"{where}, table [{name}]")
        return _build(cls, known, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, all keys in a fixed order; `from_dict` reads it back equal."""
        return {key.name: plain(getattr(self, key.name)) for key in dataclasses.fields(self)}

    def to_toml(self) -> str:
        """A complete recipe with a comment on every key; unset keys stand there as comments. Reads back equal."""
        keys = [key for key in dataclasses.fields(self) if key.name not in ("shapes", *TABLES)]
        lines = ["# qcompiler recipe", ""]
        for key in keys:
            lines += [*entry_of(key, getattr(self, key.name)), ""]
        for name, kind in TABLES.items():
            lines += [f"# {kind.__doc__}", f"[{name}]"]
            for key in dataclasses.fields(kind):
                lines += entry_of(key, getattr(getattr(self, name), key.name))
            lines.append("")
        shapes = next(key for key in dataclasses.fields(self) if key.name == "shapes")
        lines.append(f"# {shapes.metadata['help']}")
        if self.shapes is None:
            return "\n".join([*lines, "# [shapes]", f"# {shapes.metadata['example']}", ""])
        rows = [
            f"{to_toml(name)} = {to_toml([check.spell_shape(s) for s in three])}" for name, three in self.shapes.items()
        ]
        return "\n".join([*lines, "[shapes]", *rows, ""])

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked like new ones.

        Raises:
            UsageError: an unknown key or a wrong value.
        """
        unknown = [name for name in changes if name not in _names(type(self))]
        if unknown:
            raise UsageError(f"unknown recipe key '{unknown[0]}': {did_you_mean(unknown[0], _names(type(self)))}")
        return dataclasses.replace(self, **changes)

    def formats(self) -> tuple[DType, ...]:
        """The quantized types that layers may get; empty for a float precision."""
        if self.precision in ("int8", "fp8"):
            return (DType(self.precision),)
        if not self.precision.startswith("auto"):
            return ()
        listed = self.precision.partition(":")[2].split(",") if ":" in self.precision else list(AUTO_FORMATS)
        return tuple(DType(one) for one in listed if DType(one).quantized)

    @property
    def everything(self) -> bool:
        """Whether no layer may go back to high precision for accuracy: `auto` with a list that lacks fp16."""
        return self.precision.startswith("auto:") and "fp16" not in self.precision

    def resolve(self) -> Target:
        """The target as the passes need it; precision fp16 or bf16 means that type for everything."""
        whole = self.precision if self.precision in HIGH_PRECISIONS else None
        high = self.high_precision or whole
        return dataclasses.replace(parse_target(self.target, DType(high) if high else None), plugins=self.plugin)


TABLES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "safety": SafetyTable,
        "smooth_quant": SmoothQuantTable,
        "qfem": QfemTable,
        "qfep": QfepTable,
        "llm_int8": LlmInt8Table,
        "weight_only": WeightOnlyTable,
        "generation": GenerationTable,
        "text": TextTable,
        "preprocess": PreprocessTable,
    }
)


# Keys of earlier versions by table: manifests of that time are replayed without them, recipes are told what to write
RETIRED: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {"safety": {"range_groups": "how many layers try other ranges follows from the budget of the search"}}
)


def _without_retired(table: str, value: Any) -> Any:
    gone = RETIRED.get(table, {})
    return {key: one for key, one in value.items() if key not in gone} if isinstance(value, Mapping) else value


def _refuse_retired(data: Mapping[str, Any], where: str) -> None:
    for table, keys in RETIRED.items():
        value = data.get(table)
        for key in value if isinstance(value, Mapping) else ():
            if key in keys:
                raise UsageError(f"{where}, table [{table}]: '{key}' is gone: {keys[key]}; leave it out")


def _names(kind: type) -> list[str]:
    return [key.name for key in dataclasses.fields(kind)]


def _build(kind: type[_T], data: Mapping[str, Any], where: str) -> _T:
    for name in data:
        if name not in _names(kind):
            raise UsageError(f"{where}: unknown key '{name}': {did_you_mean(str(name), _names(kind))}")
    try:
        return kind(**data)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


# built on demand: a check of a recipe may import what the rest of the command line does not need
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "int8": {},
        "fp8": {"precision": "fp8", "calibrator": "mse", "target": "tensorrt-rtx:sm89"},  # no older GPU has FP8
        "auto": {"precision": "auto", "target": "tensorrt-rtx:sm89"},  # costs are those of a GPU that has to be named
        "int8-dynamic": {"precision": "int8-dynamic", "target": "onnxruntime"},
        "int8-weight": {"precision": "int8-weight"},
        "int4-weight": {"precision": "int4-weight"},
        "fp16": {"precision": "fp16"},
        "bf16": {"precision": "bf16", "high_precision": "bf16"},
    }
)


def preset(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset '{name}': {did_you_mean(name, PRESETS)}")
    return Recipe(**PRESETS[name])
