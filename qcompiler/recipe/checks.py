"""The checks that recipe keys are made of: each one returns the value, or says what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qcompiler.errors import EngineError, UsageError
from qcompiler.support.sizes import parse_size
from qcompiler.support.suggest import did_you_mean
from qcompiler.target import parse_target

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]
METRICS: Final = ("perplexity", "perplexity-cached")  # the built-in ones


class WrongError(Exception):
    """Raised by a check; its text says what is allowed."""


Check = Callable[[Any], Any]


def one_of(*allowed: str) -> Check:
    """One of these texts."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            hint = f"; {did_you_mean(value, allowed)}" if isinstance(value, str) else ""
            raise WrongError(f"one of {', '.join(allowed)}" + (hint if "did you mean" in hint else ""))
        return str(value)

    return check


def one_number(*allowed: int) -> Check:
    """One of these whole numbers."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or value not in allowed:
            raise WrongError(f"one of {', '.join(map(str, allowed))}")
        return int(value)

    return check


def integer(least: int) -> Check:
    """A whole number from there on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise WrongError(f"an integer of at least {least}")
        return value

    return check


def number(least: float, most: float = math.inf) -> Check:
    """A finite number within the bounds."""
    bounds = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise WrongError(f"a number {bounds}")
        if not least <= value <= most:
            raise WrongError(f"a number {bounds}")
        return float(value)

    return check


def relative(value: Any) -> float:
    """A number from 0 on, or a text in percent: `0.5%`."""
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            value = float(value.strip()[:-1]) / 100
        return float(number(0)(float(value) if isinstance(value, str) else value))
    except (ValueError, WrongError) as error:
        raise WrongError("a number of at least 0, such as 0.005, or a percentage such as 0.5%") from error


def point(*words: str) -> Check:
    """A point of a front: one of `words`, its id as a whole number, or its share as a fraction."""

    def check(value: Any) -> str | int | float:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and re.fullmatch(r"\d+|\d*\.\d+|\d+\.", value, re.ASCII):
            value = int(value) if value.isdigit() else float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise WrongError(f"one of {', '.join(words)}, the id of a point such as 3, or a share such as 0.8")
        if isinstance(value, float) and not value <= 1:
            raise WrongError("a share from 0.0 to 1.0; an id is a whole number without a point")
        return value

    return check


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise WrongError("true or false")
    return value


def text(value: Any) -> str:
    """Any text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise WrongError("a text that is not empty")
    return value


def size(value: Any) -> str:
    """Bytes as people write them."""
    if not isinstance(value, str) or parse_size(value) is None:
        raise WrongError('a size as text, such as "2GB" or "500MB"')
    return value


def function(value: Any) -> str:
    """`file.py:function` or `package.module:function`."""
    if not isinstance(value, str) or not all(value.rpartition(":")):
        raise WrongError("a function written as file.py:function or package.module:function")
    return value


def metric(known: Sequence[str]) -> Check:
    """One of the built-in metrics, or a function of the user's."""

    def check(value: Any) -> str:
        if value in known:
            return str(value)
        try:
            return function(value)
        except WrongError as error:
            raise WrongError(f"one of {', '.join(known)}, or {error}") from error

    return check


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts that are not empty; one alone may stand without a list."""
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) and one.strip() for one in listed):
        raise WrongError("a list of paths")
    return tuple(listed)


def prefix(value: Any) -> str | tuple[int, ...]:
    """`off`, a rule, `text:` with a text, or token ids: a list, or as text with commas."""
    allowed = "off, auto, prefixquant, token ids such as [1, 28], or text:... with a text"
    if isinstance(value, str):
        if value in ("off", "auto", "prefixquant") or (value.startswith("text:") and len(value) > len("text:")):
            return value
        value = [int(one) if one.strip().isdecimal() else one for one in value.split(",")]
    whole = isinstance(value, Sequence) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    if not whole or not value or min(value) < 0:
        raise WrongError(allowed)
    return tuple(value)


def numbers(value: Any) -> tuple[float, ...]:
    """A list of finite numbers; one alone may stand without a list."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    try:
        return tuple(number(-math.inf)(one) for one in listed)
    except WrongError as error:
        raise WrongError("a list of numbers, such as [0.485, 0.456, 0.406]") from error


def numbers_above_zero(value: Any) -> tuple[float, ...]:
    """As `numbers`, and each of them is positive."""
    found = numbers(value)
    if not found or min(found) <= 0:
        raise WrongError("a list of numbers above 0, such as [0.229, 0.224, 0.225]")
    return found


def preprocessing(known: Sequence[str]) -> Check:
    """One of the built-in ways to prepare a file, a Hugging Face configuration, or a function of the user's."""

    def check(value: Any) -> str:
        if isinstance(value, str) and (value in known or value.endswith(".json")):
            return value
        try:
            return function(value)
        except WrongError as error:
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            more = f"; {hint}" if "did you mean" in hint else ""
            raise WrongError(
                f"one of {', '.join(known)}, a preprocessor_config.json, or {error} that gets the path of a file{more}"
            ) from error

    return check


def picture_size(value: Any) -> tuple[int, int]:
    """Height and width: `[480, 640]`, `480x640`, or one number for both."""
    listed = value.split("x") if isinstance(value, str) else value if isinstance(value, Sequence) else (value,)
    parts = [int(one) if isinstance(one, str) and one.strip().isdecimal() else one for one in listed]
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in parts)
    if len(parts) not in (1, 2) or not whole:
        raise WrongError("height x width in pixels, such as 480x640, or one number for a square")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


def regexes(value: Any) -> tuple[str, ...]:
    """A list of regular expressions; one alone may stand without a list."""
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise WrongError("a list of regular expressions over node names")
    for one in listed:
        try:
            re.compile(one)
        except re.error as error:
            raise WrongError(f"a list of regular expressions, but '{one}' is none ({error})") from error
    return tuple(listed)


def alpha(least: float, most: float, *words: str) -> Check:
    """One of `words`, or a number between the bounds."""

    def check(value: Any) -> str | float:
        if isinstance(value, str) and value in words:
            return value
        try:
            return float(number(least, most)(value))
        except WrongError as error:
            raise WrongError(f"one of {', '.join(words)}, or {error}") from error

    return check


def by_layer(value: Any) -> Mapping[str, float]:
    """A table of regular expression = number from 0 to 1."""
    if not isinstance(value, Mapping):
        raise WrongError('a table of "regular expression" = alpha')
    regexes(list(value))
    return {str(name): number(0, 1)(one) for name, one in value.items()}


def precision(plain: Sequence[str], formats: Sequence[str]) -> Check:
    """One of `plain`, or `auto`, alone or with the formats to choose from: `auto:int8,fp8,fp16`."""
    several = f"auto:{','.join(formats)} or a part of that list"

    def check(value: Any) -> str:
        if isinstance(value, str) and value.startswith("auto:"):
            listed = [one.strip() for one in value.removeprefix("auto:").split(",")]
            wrong = [one for one in listed if one not in formats]
            if wrong or len(set(listed)) != len(listed):
                raise WrongError(several + (f"; '{wrong[0]}' is not in it" if wrong else "; a format is there twice"))
            return "auto:" + ",".join(one for one in formats if one in listed)
        return str(one_of(*plain, "auto")(value))

    return check


def calibrator(value: Any) -> str:
    """A calibrator's text form; whether it exists is asked where calibrators are known."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9-]+(\{.*\})?", value):
        raise WrongError("a calibrator such as entropy, percentile{p=99.9}, minmax or mse")
    return value


def target(value: Any) -> str:
    """An engine with SMs."""
    try:
        parse_target(text(value))
    except EngineError:
        raise  # the SM exists, the engine lacks it: another exit code, and the message is complete
    except UsageError as error:
        raise WrongError(f"an engine with optional SMs, such as tensorrt-rtx:sm89,sm120 ({error})") from error
    return str(value)


def batch_axes(value: Any) -> Mapping[str, int | None]:
    """A table of input = axis, or texts `input=axis`; `none` (None in Python) says that the input has no batch."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, Sequence) and all(isinstance(one, str) for one in listed):
        parts = [one.rpartition("=") for one in listed]
        names = [name.strip() for name, _, _ in parts]
        if len(set(names)) != len(names):
            raise WrongError("every input once")
        listed = {name: axis.strip() for name, (_, _, axis) in zip(names, parts, strict=True)}
    if not isinstance(listed, Mapping) or not all(str(name) for name in listed):
        raise WrongError("input=axis, such as x=1, or x=none")
    return {str(name): _axis(str(name), axis) for name, axis in listed.items()}


def parse_batch_axes(texts: Sequence[str]) -> Mapping[str, int | None]:
    """Reads `x=1` or `x=none`, one text an input.

    Raises:
        UsageError: anything else, or an input that is there twice.
    """
    try:
        return batch_axes(texts)
    except WrongError as error:
        raise UsageError(f"batch axis '{' '.join(texts)}' cannot be read: allowed is {error}") from error


def _axis(name: str, value: Any) -> int | None:
    if value is None or value == "none":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WrongError(f"for input '{name}' the number of an axis, from 0, or none")
    return value


def fixed_inputs(value: Any) -> Mapping[str, Any]:
    """A table of input = value, or texts `input=value`: numbers, truth values, lists of them, an .npy or .npz file."""
    entries = _entries(value, "input=value, such as use_cache_branch=true, or x=values.npy")
    return {name: _fixed_value(name, one) for name, one in entries.items()}


def _fixed_value(name: str, value: Any) -> Any:
    """As JSON has it, or the name of a file."""
    if isinstance(value, str) and value.endswith((".npy", ".npz")):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            value = None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not _is_numbers(value):
        raise WrongError(f"for input '{name}' a number, true, false, a list of them, or an .npy or .npz file")
    return _in_lists(value)


def _in_lists(value: Any) -> Any:
    return [_in_lists(one) for one in value] if isinstance(value, list | tuple) else value


def _is_numbers(value: Any) -> bool:
    """Numbers in lists of one length each."""
    if not isinstance(value, list | tuple):
        return isinstance(value, bool | int | float)
    inner = {len(one) if isinstance(one, list | tuple) else -1 for one in value}
    return len(inner) < 2 and all(map(_is_numbers, value))


def fixed_shapes(value: Any) -> Mapping[str, str]:
    """A table of input = shape or axis = size, or texts of them: `x=1x3x224x224`, `batch=1`."""
    entries = _entries(value, "input=shape, such as x=1x3x224x224, or axis=size, such as batch=1")
    return {name: spell_shape(read_fixed_shape(name, one)) for name, one in entries.items()}


def read_fixed_shape(name: str, value: Any) -> Shape:
    """The sizes of one entry of `fixed_shapes`."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return _shape(name, value.replace(",", "x") if isinstance(value, str) else value)


def parse_fixed_inputs(texts: Sequence[str]) -> Mapping[str, Any]:
    """Reads `x=true`, `x=[1, 2]` or `x=file.npy`, one text an input.

    Raises:
        UsageError: anything else, or an input that is there twice.
    """
    return _parsed(fixed_inputs, texts, "fixed input")


def parse_fixed_shapes(texts: Sequence[str]) -> Mapping[str, str]:
    """Reads `x=1x3x224x224` or `batch=1`, one text an input or axis.

    Raises:
        UsageError: anything else, or a name that is there twice.
    """
    return _parsed(fixed_shapes, texts, "fixed shape")


def _parsed(check: Callable[[Any], Mapping[str, Any]], texts: Sequence[str], what: str) -> Mapping[str, Any]:
    try:
        return check(texts)
    except WrongError as error:
        raise UsageError(f"{what} '{' '.join(texts)}' cannot be read: allowed is {error}") from error


def _entries(value: Any, allowed: str) -> Mapping[str, Any]:
    """A table as it is, or made of texts `name=value`."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, Mapping):
        return {str(name): one for name, one in listed.items()}
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) and all(one.rpartition("=")) for one in listed):
        raise WrongError(allowed)
    parts = [one.rpartition("=") for one in listed]
    names = [name.strip() for name, _, _ in parts]
    if len(set(names)) != len(names):
        raise WrongError("every name once")
    return {name: text.strip() for name, (_, _, text) in zip(names, parts, strict=True)}


def shapes(value: Any) -> Shapes:
    """The table of the optimization profile."""
    if not isinstance(value, Mapping):
        raise WrongError("a table of input = [smallest, usual, largest shape]")
    return {str(name): _profile(str(name), three) for name, three in value.items()}


def _profile(name: str, three: Any) -> tuple[Shape, Shape, Shape]:
    if isinstance(three, str) or not isinstance(three, Sequence) or len(three) != 3:
        raise WrongError(f"three shapes for input '{name}': smallest, usual, largest")
    least, usual, most = (_shape(name, one) for one in three)
    if not len(least) == len(usual) == len(most):
        raise WrongError(f"three shapes of one rank for input '{name}'")
    if not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
        raise WrongError(f"shapes that do not shrink from smallest to usual to largest for input '{name}'")
    return least, usual, most


def _shape(name: str, value: Any) -> Shape:
    if isinstance(value, str):
        return _read_shape(name, value)
    whole = isinstance(value, Sequence) and all(isinstance(d, int) and not isinstance(d, bool) for d in value)
    if not whole or any(dim < 0 for dim in value):
        raise WrongError(f"shapes of integers that are not negative for input '{name}'")
    return tuple(value)


def _read_shape(name: str, text: str) -> Shape:
    if text.strip() == "()":
        return ()
    dims = text.strip().split("x")
    if not all(dim.isascii() and dim.isdigit() for dim in dims):
        raise WrongError(f"shapes such as 1x3x224x224 for input '{name}', not '{text.strip()}'")
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
                raise WrongError("input=smallest,usual,largest, such as x=1x3x224x224,8x3x224x224,32x3x224x224")
            if name.strip() in found:
                raise WrongError(f"every input once, but '{name.strip()}' is there twice")
            shapes = listed.split(",")
            found[name.strip()] = _profile(name.strip(), shapes * 3 if len(shapes) == 1 else shapes)
        if not found:
            raise WrongError("input=smallest,usual,largest")
    except WrongError as error:
        raise UsageError(f"shapes '{text}' cannot be read: allowed is {error}") from error
    return found


def format_shapes(shapes: Shapes) -> str:
    """The text that `parse_shapes` reads back to an equal value."""
    return ";".join(f"{name}={','.join(map(spell_shape, three))}" for name, three in shapes.items())


def spell_shape(shape: Shape) -> str:
    """`1x3x224x224`; `()` for a scalar."""
    return "x".join(map(str, shape)) or "()"


def option(default: Any, check: Check, help: str, example: str = "") -> Any:
    """A recipe key: its default (None where it may be unset), its check, its help, and an example for the unset."""
    return dataclasses.field(default=default, metadata={"check": check, "help": help, "example": example})


class Keys:
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
            except WrongError as error:
                raise UsageError(f"recipe key '{key.name}' = {value!r}: allowed is {error}") from error
