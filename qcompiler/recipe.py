"""What the user asked for, as one frozen value: `Recipe` <-> TOML <-> command line <-> manifest.

Each field carries its own check and its own help, so that the TOML comments, the error messages and the options of the
command line all say the same. Unknown keys and wrong values are `UsageError`s that name the key and what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from qcompiler.errors import EngineError, UsageError
from qcompiler.suggest import did_you_mean
from qcompiler.target import DType, Target, parse_target

_T = TypeVar("_T")
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]

PRECISIONS: Final = ("int8", "fp8", "int8-weight", "int4-weight", "fp16", "bf16")
HIGH_PRECISIONS: Final = ("fp32", "fp16", "bf16")
WEIGHT_GRANULARITIES: Final = ("channel", "tensor")
ATTENTIONS: Final = ("float", "int8")


class _WrongError(Exception):
    """Raised by a check; its text says what is allowed."""


_Check = Callable[[Any], Any]


def _one_of(*allowed: str) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            hint = f"; {did_you_mean(value, allowed)}" if isinstance(value, str) else ""
            raise _WrongError(f"one of {', '.join(allowed)}" + (hint if "did you mean" in hint else ""))
        return str(value)

    return check


def _integer(least: int) -> _Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _WrongError(f"an integer of at least {least}")
        return value

    return check


def _number(least: float, most: float = math.inf) -> _Check:
    bounds = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _WrongError(f"a number {bounds}")
        if not least <= value <= most:
            raise _WrongError(f"a number {bounds}")
        return float(value)

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongError("a text that is not empty")
    return value


def _function(value: Any) -> str:
    if not isinstance(value, str) or not all(value.rpartition(":")):
        raise _WrongError("a function written as file.py:function or package.module:function")
    return value


def _regexes(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise _WrongError("a list of regular expressions over node names")
    for one in listed:
        try:
            re.compile(one)
        except re.error as error:
            raise _WrongError(f"a list of regular expressions, but '{one}' is none ({error})") from error
    return tuple(listed)


def _calibrator(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9-]+(\{.*\})?", value):
        raise _WrongError("a calibrator such as entropy, percentile{p=99.9}, minmax or mse")
    return value


def _target(value: Any) -> str:
    try:
        parse_target(_text(value))
    except EngineError:
        raise  # the SM exists, the engine lacks it: another exit code, and the message is complete
    except UsageError as error:
        raise _WrongError(f"an engine with optional SMs, such as tensorrt-rtx:sm89,sm120 ({error})") from error
    return str(value)


def _shapes(value: Any) -> Shapes:
    if not isinstance(value, Mapping):
        raise _WrongError("a table of input = [smallest, usual, largest shape]")
    return {str(name): _profile(str(name), three) for name, three in value.items()}


def _profile(name: str, three: Any) -> tuple[Shape, Shape, Shape]:
    if isinstance(three, str) or not isinstance(three, Sequence) or len(three) != 3:
        raise _WrongError(f"three shapes for input '{name}': smallest, usual, largest")
    least, usual, most = (_shape(name, one) for one in three)
    if not len(least) == len(usual) == len(most):
        raise _WrongError(f"three shapes of one rank for input '{name}'")
    if not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
        raise _WrongError(f"shapes that do not shrink from smallest to usual to largest for input '{name}'")
    return least, usual, most


def _shape(name: str, value: Any) -> Shape:
    if isinstance(value, str):
        return _read_shape(name, value)
    whole = isinstance(value, Sequence) and all(isinstance(d, int) and not isinstance(d, bool) for d in value)
    if not whole or any(dim < 0 for dim in value):
        raise _WrongError(f"shapes of integers that are not negative for input '{name}'")
    return tuple(value)


def _read_shape(name: str, text: str) -> Shape:
    if text.strip() == "()":
        return ()
    dims = text.strip().split("x")
    if not all(dim.isascii() and dim.isdigit() for dim in dims):
        raise _WrongError(f"shapes such as 1x3x224x224 for input '{name}', not '{text.strip()}'")
    return tuple(int(dim) for dim in dims)


def parse_shapes(text: str) -> Shapes:
    """Reads `x=1x3x224x224,8x3x224x224,32x3x224x224`; several inputs are separated by `;`.

    One shape instead of three fixes the input to it. A scalar is written `()`. The name ends at the last `=`.

    Raises:
        UsageError: anything else, or shapes that differ in rank or shrink.
    """
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    try:
        for part in filter(str.strip, text.split(";")):
            name, _, listed = part.rpartition("=")
            if not name.strip():
                raise _WrongError("input=smallest,usual,largest, such as x=1x3x224x224,8x3x224x224,32x3x224x224")
            if name.strip() in found:
                raise _WrongError(f"every input once, but '{name.strip()}' is there twice")
            shapes = listed.split(",")
            found[name.strip()] = _profile(name.strip(), shapes * 3 if len(shapes) == 1 else shapes)
        if not found:
            raise _WrongError("input=smallest,usual,largest")
    except _WrongError as error:
        raise UsageError(f"shapes '{text}' cannot be read: allowed is {error}") from error
    return found


def format_shapes(shapes: Shapes) -> str:
    """The text that `parse_shapes` reads back to an equal value."""
    return ";".join(f"{name}={','.join(map(_spell_shape, three))}" for name, three in shapes.items())


def _spell_shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"


def option(default: Any, check: _Check, help: str, example: str = "") -> Any:
    """A recipe key: its default (None where it may be unset), its check, its help, and an example for the unset."""
    return dataclasses.field(default=default, metadata={"check": check, "help": help, "example": example})


class _Keys:
    """Checking and replacing, shared by the recipe and its sub-tables."""

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, key.name)
            if value is None and key.default is None:
                continue
            if "check" not in key.metadata:
                continue
            try:
                object.__setattr__(self, key.name, key.metadata["check"](value))
            except _WrongError as error:
                raise UsageError(f"recipe key '{key.name}' = {value!r}: allowed is {error}") from error


@dataclass(frozen=True)
class Safety(_Keys):
    """The accuracy safety net: the worst layers stay in high precision until the outputs are good enough."""

    target_sqnr_db: float = option(
        25.0, _number(-100, 200), "predicted output SQNR in dB that is good enough; lower gives more speed"
    )
    min_share: float = option(
        0.75, _number(0, 1), "share of multiply-accumulates that stays quantized whatever the SQNR says, 0 to 1"
    )
    samples: int = option(8, _integer(1), "samples that plans are compared on; fewer where samples are large")
    range_groups: int = option(
        24, _integer(0), "how many of the noisiest layers try other clipping ranges when `calibrator` is auto"
    )


@dataclass(frozen=True)
class Recipe(_Keys):
    """Everything a compilation can be asked for.

    Values are checked on construction.

    Raises:
        UsageError: a value is not allowed; the message names key, value and what is.
        EngineError: the target names an SM that its engine does not have.
    """

    precision: str = option("int8", _one_of(*PRECISIONS), f"what linear layers compute in: {', '.join(PRECISIONS)}")
    calibrator: str = option(
        "auto",
        _calibrator,
        "how ranges are found: entropy, percentile, minmax, mse, or auto: mse, and whatever the outputs like better",
    )
    target: str = option(
        "tensorrt-rtx",
        _target,
        "engine and GPU generations: tensorrt-rtx[:sm89,sm120], tensorrt[:sm89] or onnxruntime",
    )
    high_precision: str | None = option(
        None,
        _one_of(*HIGH_PRECISIONS),
        "type of all that is not quantized: fp32, fp16 or bf16; unset: fp16 for TensorRT, fp32 for onnxruntime",
        '"fp32"',
    )
    samples: int | None = option(None, _integer(1), "take the first so many feeds; unset: all of the data", "512")
    batch: int | None = option(
        None, _integer(1), "samples in one run of the model while ranges are measured; unset: as the data comes", "16"
    )
    workers: int = option(
        1, _integer(1), "threads with a session each that measure ranges; the result does not depend on it"
    )
    keep: tuple[str, ...] = option(
        (), _regexes, "regular expressions; nodes whose name matches one stay in high precision"
    )
    shapes: Shapes | None = option(  # noqa: RUF009 (`option` makes a field)
        None,
        _shapes,
        "optimization profile: input = [smallest, usual, largest shape]; unset: from the data",
        'x = ["1x3x224x224", "8x3x224x224", "32x3x224x224"]',
    )
    min_sqnr: float | None = option(
        None, _number(-100, 200), "gate: every float output must reach so many dB of SQNR; unset: no gate", "20.0"
    )
    max_drop: float | None = option(
        None,
        _number(0),
        "gate: the metric may lose so much of the float score, relative (0.01 is 1 %); needs metric",
        "0.01",
    )
    metric: str | None = option(
        None,
        _function,
        "file.py:function or package.module:function; function(run) -> score, with run(feeds) -> outputs",
        '"evaluate.py:accuracy"',
    )
    strict: bool = option(False, _flag, "a node that the engine's own listing does not confirm is an error (exit 6)")
    verify_samples: int = option(16, _integer(0), "feeds that float and quantized are compared on; 0: no verification")
    verify_data: str | None = option(
        None, _text, "other data for the comparison, written like --data; unset: the calibration data", '"heldout/"'
    )
    weight_granularity: str = option(
        "channel", _one_of(*WEIGHT_GRANULARITIES), "one weight scale per output channel or per tensor"
    )
    attention: str = option(
        "float",
        _one_of(*ATTENTIONS),
        "float, or int8: q, k, v, probabilities and result too, where TensorRT fuses them; costs accuracy",
    )
    safety: Safety = Safety()

    def __post_init__(self) -> None:
        """Checks each key, then the ones that need each other."""
        super().__post_init__()
        if isinstance(self.safety, Mapping):
            object.__setattr__(self, "safety", _build(Safety, self.safety, "recipe table [safety]"))
        if not isinstance(self.safety, Safety):
            raise UsageError(f"recipe key 'safety' = {self.safety!r}: allowed is a table [safety]")
        if self.max_drop is not None and self.metric is None:
            raise UsageError("recipe key 'max_drop' needs 'metric': say which function gives the score")
        if self.attention == "int8" and self.target.partition(":")[0] == "onnxruntime":
            raise UsageError(
                "recipe key 'attention' = 'int8' needs a TensorRT target: ONNX Runtime fuses attention in float only"
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
        where, text = _toml_text(source)
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(
                f"{where} is not TOML: {error}; 'qcompiler recipe show int8' prints a complete one"
            ) from error
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Self:
        """Reads plain data, such as the `recipe` entry of a manifest; None means unset."""
        known = {key: value for key, value in data.items() if value is not None}
        table = known.get("safety")
        if isinstance(table, Mapping):
            known["safety"] = _build(Safety, table, f"{where}, table [safety]")
        return _build(cls, known, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, all keys in a fixed order; `from_dict` reads it back equal."""
        return {key.name: _plain(getattr(self, key.name)) for key in dataclasses.fields(self)}

    def to_toml(self) -> str:
        """A complete recipe with a comment on every key; unset keys stand there as comments. Reads back equal."""
        keys = [key for key in dataclasses.fields(self) if key.name not in ("shapes", "safety")]
        lines = ["# qcompiler recipe", ""]
        for key in keys:
            lines += [*_entry(key, getattr(self, key.name)), ""]
        lines += ["# the accuracy safety net", "[safety]"]
        for key in dataclasses.fields(self.safety):
            lines += _entry(key, getattr(self.safety, key.name))
        shapes = next(key for key in dataclasses.fields(self) if key.name == "shapes")
        lines += ["", f"# {shapes.metadata['help']}"]
        if self.shapes is None:
            return "\n".join([*lines, "# [shapes]", f"# {shapes.metadata['example']}", ""])
        rows = [f"{_toml(name)} = {_toml([_spell_shape(s) for s in three])}" for name, three in self.shapes.items()]
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

    def resolve(self) -> Target:
        """The target as the passes need it; precision fp16 or bf16 means that type for everything."""
        whole = self.precision if self.precision in HIGH_PRECISIONS else None
        high = self.high_precision or whole
        return parse_target(self.target, DType(high) if high else None)


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


def _is_toml(text: str) -> bool:
    return not text.strip() or "\n" in text or ("=" in text and not os.path.exists(text))


def _toml_text(source: str | Path) -> tuple[str, str]:
    if isinstance(source, str) and _is_toml(source):
        return "recipe", source
    try:
        return f"recipe {source}", Path(source).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"recipe {source} cannot be read: {reason}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Safety):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: [list(shape) for shape in three] for name, three in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _entry(key: dataclasses.Field[Any], value: Any) -> list[str]:
    comment = f"# {key.metadata['help']}"
    if value is None:
        return [comment, f"# {key.name} = {key.metadata['example']}"]
    return [comment, f"{key.name} = {_toml(_plain(value))}"]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's, but for DEL, which only TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


# built on demand: a check of a recipe may import what the rest of the command line does not need
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "int8": {},
        "fp8": {"precision": "fp8", "calibrator": "mse", "target": "tensorrt-rtx:sm89"},  # no older GPU has FP8
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
